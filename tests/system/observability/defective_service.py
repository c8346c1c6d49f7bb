"""User service with defects: a timestamp in an idempotency key, so that retries are not recognised, and a hang."""

from __future__ import annotations

import asyncio
import sys

import restate

from perdure import ServiceClient, handler
from perdure.serving import serve

reports = restate.Service("Reports")


@handler(reports)
async def write(_ctx: restate.Context, at: int) -> str:
    return f"report of {at}"


@handler(reports)
async def order(ctx: restate.Context, at: int) -> str:
    return await ServiceClient(ctx, write).call(at, idempotency_key=f"report-{at}")


@handler(reports)
async def hang(_ctx: restate.Context) -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(serve(reports, port=int(sys.argv[1])))

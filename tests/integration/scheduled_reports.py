"""Services whose handlers the schedule tests start."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import restate as sdk

from perdure import handler
from perdure.errors import Refused
from perdure.schedules import ScheduleClient, ScheduleStatus
from tests.support import Recording, eventually

FAR = timedelta(days=1)
SOON = timedelta(milliseconds=100)


class Gate:
    """Gate that blocks a handler until the test opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        await asyncio.to_thread(self._open.wait, 20)


def reports(did: Recording, gate: Gate) -> tuple[sdk.Service, sdk.Workflow, dict[str, Any]]:
    service, flow = sdk.Service("Reports"), sdk.Workflow("Closing")

    @handler(service, ingress_private=True)
    async def build(ctx: sdk.Context, name: str) -> None:
        planned = ctx.request().headers["x-perdure-planned"]
        did.add(f"build {name}/{ctx.request().headers['x-perdure-schedule']} {planned}")

    @handler(service)
    async def slow(ctx: sdk.Context, name: str) -> None:
        did.add(f"slow {name}")
        await ctx.run_typed("wait", gate.wait)

    @handler(service)
    async def broken(ctx: sdk.Context, name: str) -> None:
        raise Refused("the printer is out of paper", 503, "paper")

    @handler(flow, "main")
    async def close(ctx: sdk.WorkflowContext, name: str) -> None:
        did.add(f"close {name}/{ctx.key()}")

    @handler(service)
    async def declare(ctx: sdk.Context, name: str) -> ScheduleStatus:
        return await ScheduleClient(ctx).set(name, every=FAR, target=build, request=name, reason="declared")

    return service, flow, {each.__name__: each for each in (build, slow, broken, close, declare)}


async def state_of(schedules: ScheduleClient, name: str, **least: int) -> ScheduleStatus:
    """Wait until the counts of a schedule reach these minimums, and return its status."""

    async def probe() -> ScheduleStatus | None:
        status = await schedules.status(name)
        return status if all(getattr(status.counts, each) >= count for each, count in least.items()) else None

    return await eventually(probe, what=f"schedule '{name}' with {least}")

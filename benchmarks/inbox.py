"""How an approvals' inbox behaves with many open approvals: `python -m benchmarks.inbox --open 10000`."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import restate
import typer
from rich.table import Table

from benchmarks.load import BenchmarkError
from perdure import IngressClient, ObjectClient, Target, handler
from perdure.approvals.messages import DecisionRequest, InboxQuery
from perdure.approvals.reconciler import find_orphans
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.service import definitions
from perdure.approvals.targets import approve, list_inbox, open_approval, page_inbox
from perdure.engine.admin import AdminClient, sql_text
from perdure.security.user_names import ANYONE
from perdure.serving import build_app
from perdure.terminal import TerminalConsole
from perdure.testing.served import ServedApp
from perdure.testing.server import RestateServer

_CHECKOUT: Final = Path(__file__).parents[1]
_BATCH: Final = 500

filler = restate.Service("Filler")


@handler(filler)
async def fill(ctx: restate.Context, numbers: list[int]) -> None:
    """Open approvals without a waiter; they share the awakeable of this invocation."""
    awakeable, _ = ctx.awakeable()
    for number in numbers:
        request = ApprovalRequest(
            approval_id=f"A{number:06d}",
            title=f"Trip {number} for 2500.00 EUR: PD100, Harbour",
            requester="ada@example.com",
            timeout=timedelta(hours=24, seconds=number % 3600),
            payload={"traveller": "ada@example.com", "note": "x" * 400},
            wait="benchmark",
            awakeable=awakeable,
        )
        await ObjectClient(ctx, open_approval, request.approval_id).send(request)


_fill: Target[list[int], None] = Target("Filler", "fill", list[int], None)


async def _timed(call: Callable[[], Awaitable[object]], times: int) -> str:
    durations = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        durations.append((time.perf_counter() - began) * 1000)
    return f"{statistics.median(durations):.1f} ms median, {max(durations):.1f} ms maximum of {times}"


async def _until(client: IngressClient, reached: Callable[[int], bool]) -> None:
    deadline = time.monotonic() + 600
    while not reached((await client.call(page_inbox, InboxQuery(limit=1), key=ANYONE)).total):
        if time.monotonic() > deadline:
            raise BenchmarkError("the inbox did not reach the expected size within ten minutes")
        await asyncio.sleep(0.05)


async def _measure(server: RestateServer, url: str, count: int, console: TerminalConsole) -> None:
    async with (
        AdminClient(server.admin) as admin,
        IngressClient(server.ingress, timeout=timedelta(minutes=5)) as client,
    ):
        await admin.register(url)
        table = Table("operation", "duration")
        began = time.perf_counter()
        for first in range(0, count, _BATCH):
            await client.call(_fill, list(range(first, min(count, first + _BATCH))))
        await _until(client, lambda total: total == count)
        seconds = time.perf_counter() - began
        table.add_row(f"open {count} approvals", f"{seconds:.1f} s, {count / seconds:.0f}/s")
        size = await admin.query(
            "select sum(length(value_utf8)) as size from state "  # noqa: S608 - quoted
            f"where service_name = 'ApprovalInbox' and service_key = {sql_text(ANYONE)}"
        )
        table.add_row("state of the inbox", f"{(size[0]['size'] or 0) / 1e6:.1f} MB")
        table.add_row("list (500)", await _timed(lambda: client.call(list_inbox, key=ANYONE), 10))
        for limit in (20, 100, 500):
            query = InboxQuery(limit=limit)
            table.add_row(f"page of {limit}", await _timed(partial(client.call, page_inbox, query, key=ANYONE), 20))
        deciding = iter(range(count))

        async def decide() -> None:
            number = next(deciding)
            await client.call(approve, DecisionRequest(actor="grace@example.com"), key=f"A{number:06d}")

        table.add_row("decide one", await _timed(decide, 100))
        began = time.perf_counter()
        await asyncio.gather(*(decide() for _ in range(400)))
        seconds = time.perf_counter() - began
        await _until(client, lambda total: total == count - 500)
        removed = time.perf_counter() - began
        table.add_row(
            "decide 400 at once",
            f"{seconds:.1f} s, {400 / seconds:.0f}/s; removed from the inbox after {removed:.1f} s",
        )
        table.add_row("scan of the reconciler", await _timed(lambda: find_orphans(admin, timedelta(seconds=5)), 5))
        console.print(table)


def main(
    count: Annotated[int, typer.Option("--open", min=600, help="Number of open approvals.")] = 10_000,
) -> None:
    """Measure an inbox with many open approvals on a real engine."""
    with (
        RestateServer(install_dir=_CHECKOUT / ".local" / "engine") as server,
        ServedApp(build_app(*definitions(), filler)) as served,
    ):
        asyncio.run(_measure(server, served.url, count, TerminalConsole(width=120)))


if __name__ == "__main__":
    typer.run(main)

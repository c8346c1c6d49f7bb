"""Cost of queries and of background work by the number of finished sagas.

python -m benchmarks.scaling --sagas 1000 --sagas 16000 --page docs/explanation/scaling.md

The history is synthetic (see `benchmarks.history`). The background work is that of the reconcilers, on their schedule.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.history import synthetic_history
from benchmarks.load import BenchmarkError
from benchmarks.measure import cpu_seconds
from benchmarks.recovery import run_measurement
from perdure.alerts.conditions import stored_conditions_sql
from perdure.alerts.service import ALERT_RETRIES, RECENT_KILL, take_snapshot
from perdure.approvals.reconciler import ApprovalReconciler, ApprovalReconcilerConfig, count_approvals
from perdure.approvals.reconciler import find_orphans as find_approval_orphans
from perdure.approvals.service import ApprovalsConfig
from perdure.approvals.service import definitions as approvals
from perdure.dev.terminal import Terminal
from perdure.engine.admin import AdminClient
from perdure.engine.ingress import IngressClient
from perdure.saga import hosting
from perdure.saga.queries import list_sagas
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig, find_orphans
from perdure.saga.schema import DEAD_LETTERS_SQL
from perdure.saga.status import SagaPhase
from perdure.serving import build_app
from perdure.serving.server import listening
from perdure.testing.server import RestateServer

_CHECKOUT: Final = Path(__file__).parents[1]
_ROUNDS: Final = 7
_BEGIN: Final = "<!-- figures: begin -->"
_END: Final = "<!-- figures: end -->"

Query = Callable[[AdminClient], Awaitable[object]]


def queries(reconciler: SagaReconcilerConfig) -> Mapping[str, Query]:
    """Return the measured queries by name."""
    second = timedelta(seconds=1)
    return {
        "list of open sagas": list_sagas,
        "list of completed sagas of the last day": lambda admin: list_sagas(admin, phases=[SagaPhase.COMPLETED]),
        "dead letters": lambda admin: admin.query(DEAD_LETTERS_SQL),
        "alerts": lambda admin: take_snapshot(admin, ALERT_RETRIES, RECENT_KILL),
        "scan for paused and failed invocations": lambda admin: admin.query(stored_conditions_sql(RECENT_KILL, second)),
        "scan for orphaned sagas": lambda admin: find_orphans(admin, reconciler),
        "scan for orphaned approvals": lambda admin: find_approval_orphans(admin, second),
        "gauges of approvals": lambda admin: count_approvals(admin, None),
    }


@dataclass(frozen=True)
class Cost:
    """Cost of one execution.

    Args:
        wall: The shortest time in seconds.
        cpu: The mean CPU time of the engine in seconds.
    """

    wall: float
    cpu: float


async def measure(admin: AdminClient, engine_pid: int, query: Query, rounds: int = _ROUNDS) -> Cost:
    """Measure a query.

    Args:
        admin: The engine.
        engine_pid: The engine's process.
        query: The query.
        rounds: Number of executions.

    Raises:
        BenchmarkError: The system does not report CPU times.
    """
    before, times = _cpu(engine_pid), []
    for _ in range(rounds):
        begin = time.perf_counter()
        await query(admin)
        times.append(time.perf_counter() - begin)
    return Cost(min(times), (_cpu(engine_pid) - before) / rounds)


def _cpu(pid: int) -> float:
    spent = cpu_seconds(pid)
    if spent is None:
        raise BenchmarkError("this system does not report the CPU time of a process: /proc is missing")
    return spent


@asynccontextmanager
async def _platform(admin: AdminClient, ingress_url: str) -> AsyncIterator[tuple[SagaReconciler, ApprovalReconciler]]:
    """Serve the saga service and the approval service without their background loops."""
    sagas = SagaReconciler(SagaReconcilerConfig(admin_url=admin.url, ingress_url=ingress_url))
    approval = ApprovalReconciler(ApprovalReconcilerConfig(admin_url=admin.url, ingress_url=ingress_url))
    services = [*hosting.definitions(), sagas, *approvals(ApprovalsConfig()), approval]
    async with listening(build_app(*services), http="2") as listener:
        await admin.register(listener.url)
        yield sagas, approval


async def _background(
    engine_pid: int, sagas: SagaReconciler, approval: ApprovalReconciler, duration: timedelta
) -> float:
    """Return the share of a core that engine and reconcilers use."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(sagas.watching())
        await stack.enter_async_context(approval.watching())
        await asyncio.sleep(duration.total_seconds() / 2)  # each query has run once
        begin, before = time.monotonic(), _cpu(engine_pid) + time.process_time()
        await asyncio.sleep(duration.total_seconds())
        return (_cpu(engine_pid) + time.process_time() - before) / (time.monotonic() - begin)


@dataclass(frozen=True)
class Level:
    """Measurements with a number of finished sagas.

    Args:
        sagas: The number.
        costs: Costs of the queries by name.
        background: Share of a core for background work.
    """

    sagas: int
    costs: Mapping[str, Cost]
    background: float


def table(levels: Sequence[Level]) -> str:
    """Return the measurements as a Markdown table."""
    rows = [["", *(f"{level.sagas:,}" for level in levels)], ["---", *("---" for _ in levels)]]
    for name in levels[0].costs:
        costs = [level.costs[name] for level in levels]
        rows.append([name, *(f"{each.wall * 1000:.0f} ms ({each.cpu * 1000:.0f} ms)" for each in costs)])
    rows.append(["background work, share of a core", *(f"{level.background:.1%}" for level in levels)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


async def _run(
    server: RestateServer, sizes: Sequence[int], keep_writes: bool, idle: timedelta, tell: Callable[[str], None]
) -> list[Level]:
    pid = server.engine.pid
    assert pid is not None  # noqa: S101 - it runs
    config = SagaReconcilerConfig(admin_url=server.admin, ingress_url=server.ingress)
    levels: list[Level] = []
    async with (
        AdminClient(server.admin) as admin,
        IngressClient(server.ingress) as ingress,
        _platform(admin, server.ingress) as (sagas, approval),
        synthetic_history(admin, ingress, keep_writes=keep_writes) as history,
    ):
        for size in sizes:
            begin = time.monotonic()
            await history.grow_to(size)
            tell(f"{size} finished sagas after {time.monotonic() - begin:.0f} s")
            costs: dict[str, Any] = {}
            for name, query in queries(config).items():
                costs[name] = cost = await measure(admin, pid, query)
                tell(f"  {name}: {cost.wall * 1000:.0f} ms, CPU {cost.cpu * 1000:.0f} ms")
            levels.append(Level(size, costs, await _background(pid, sagas, approval, idle)))
            tell(f"  background work: {levels[-1].background:.2%} of a core")
    return levels


async def _main(sizes: list[int], keep_writes: bool, idle: timedelta, page: Path | None, terminal: Terminal) -> None:
    # The server runs in a process of its own; its start blocks for a moment.
    with RestateServer(install_dir=_CHECKOUT / ".local" / "engine", partitions=2) as server:
        levels = await _run(server, sizes, keep_writes, idle, terminal.say)
    figures = f"Measured on {datetime.now(UTC):%Y-%m-%d}.\n\n{table(levels)}"
    terminal.say(figures)
    if page is not None:
        _replace_figures(page, figures)


def _replace_figures(page: Path, figures: str) -> None:
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{figures}\n\n{_END}{after}")


def main(
    sagas: Annotated[list[int] | None, typer.Option(min=0, help="Number of finished sagas; ascending.")] = None,
    *,
    keep_writes: Annotated[bool, typer.Option(help="Retain the invocations of the data plane.")] = True,
    idle: Annotated[int, typer.Option(min=10, help="Seconds of idle background work to measure.")] = 120,
    page: Annotated[Path | None, typer.Option(help="Page whose figures are replaced.")] = None,
) -> None:
    """Measure the cost of queries and of background work by the number of finished sagas."""
    run_measurement(_main(sagas or [0, 1000, 4000, 16000], keep_writes, timedelta(seconds=idle), page, Terminal()))


if __name__ == "__main__":
    typer.run(main)

"""What seeing costs: the 3-step saga with metrics and traces, the engine's own included, beside the same with neither.

python -m benchmarks.observability --help

Each side has an engine of its own, since the engine's spans are part of what tracing costs. The spans go to a receiver
that throws them away: what a receiver does with them is its own business.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.measure import Sample, Side, alternate
from benchmarks.report import report, table, warnings
from benchmarks.serve import SILENT
from benchmarks.stage import running_engine, running_side
from benchmarks.variants import Shape, Variant
from perdure.engine import LocatedEngine, locate_engine
from perdure.errors import PerdureError
from perdure.observability.tracing_setup import engine_tracing
from services.launcher.interrupts import Interrupted, Interrupts
from services.launcher.receiver import TraceReceiver
from services.launcher.settings import PlatformSettings
from services.launcher.terminal import Terminal

_WARM_UP: Final = timedelta(seconds=3)


@dataclass(frozen=True)
class Plan:
    """How long to compare.

    Args:
        rounds: How often each side has its turn, for each number of clients.
        turn: How long a turn takes.
        clients: The numbers of clients to measure with.
        traced: The share of traces that is kept; 0: metrics alone.
    """

    rounds: int
    turn: timedelta
    clients: tuple[int, ...]
    traced: float


@dataclass(frozen=True)
class _Place:
    engine: LocatedEngine
    config_file: Path
    home: Path


class _Sink(TraceReceiver):
    """Takes spans and throws them away."""

    taken = 0

    def take(self, body: bytes) -> None:
        self.taken += len(body)


def bench(plan: Plan, settings: PlatformSettings, terminal: Terminal) -> int:
    """Compare, show the result, and keep it in ``.local/bench``.

    Args:
        plan: How long.
        settings: Where the engine and its settings are.
        terminal: Where to show it.

    Returns:
        The exit code: 0, or 128 and the signal's number when it was stopped.

    Raises:
        PerdureError: It can't be measured.
    """
    results = settings.local_dir.resolve() / "bench"
    results.mkdir(parents=True, exist_ok=True)
    engine = locate_engine(settings.local_dir.resolve() / "engine")
    home = Path(tempfile.mkdtemp(prefix="run-", dir=results))
    try:
        with _Sink() as sink:
            measured = asyncio.run(
                _interruptible(plan, _Place(engine, settings.engine_config.resolve(), home), sink, terminal)
            )
            terminal.say(f"{sink.taken / 1e6:.1f} MB of spans were sent")
    except Interrupted as interrupt:
        return interrupt.exit_code
    finally:
        shutil.rmtree(home)
    described = {"left": "observed", "right": "unobserved", "traced": str(plan.traced), "rounds": str(plan.rounds)}
    result = report(measured, described, engine.version)
    terminal.draw(table(result))
    for warning in warnings(result):
        terminal.say(f"beware: {warning}", "bold yellow")
    terminal.say(f"kept in {result.save(results)}")
    return 0


async def _interruptible(plan: Plan, place: _Place, sink: TraceReceiver, terminal: Terminal) -> list[list[Sample]]:
    interrupts = Interrupts()
    with interrupts.listening():
        return await interrupts.unless_asked(_measured(plan, place, sink, terminal))


async def _measured(plan: Plan, place: _Place, sink: TraceReceiver, terminal: Terminal) -> list[list[Sample]]:
    def tell(sample: Sample) -> None:
        terminal.say(f"  {sample.clients:>3} clients  {sample.side:<12} {sample.throughput:7.1f} sagas/s")

    observed = {}
    if plan.traced:
        observed = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url,
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(plan.traced),
        }
    plans: list[tuple[str, Mapping[str, str]]] = [("observed", observed), ("unobserved", {SILENT: "1"})]
    keys = (f"trip-{number}" for number in count())
    async with AsyncExitStack() as stack:
        sides: list[Side] = []
        for label, environment in plans:
            folder = place.home / label
            folder.mkdir()
            running = await stack.enter_async_context(
                running_engine(place.engine.path, place.config_file, folder, engine_tracing(environment))
            )
            side = running_side(
                running,
                folder,
                label=label,
                variant=Variant.PERDURE,
                shape=Shape.CALLS,
                workflow="Trips",
                environment=environment,
            )
            sides.append(await stack.enter_async_context(side))
        measured: list[list[Sample]] = []
        for number in plan.clients:
            measured += await alternate(
                sides, keys, clients=number, rounds=plan.rounds, duration=plan.turn, warm_up=_WARM_UP, tell=tell
            )
        return measured


def main(
    *,
    rounds: Annotated[int, typer.Option(min=2, max=100, help="Turns of each side, for each number of clients.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="How long a turn takes.")] = 2,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, max=512, help="Clients at once; repeat it.", show_default="1, 32")
    ] = None,
    traced: Annotated[float, typer.Option(min=0, max=1, help="Share of traces that is kept; 0: metrics alone.")] = 1,
) -> None:
    """Compare a 3-step saga with metrics and traces with the same without."""
    try:
        plan = Plan(rounds, timedelta(seconds=seconds), tuple(clients or (1, 32)), traced)
        code = bench(plan, PlatformSettings.read(), Terminal())
    except PerdureError as error:
        typer.echo(f"bench: {error}", err=True)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    typer.run(main)

"""What seeing costs: the 3-step saga with metrics and traces, the engine's own included, beside the same with neither.

python -m benchmarks.observability --help

The engine's spans are part of what tracing costs, so then each side has an engine of its own; where what the services
pay is measured alone, both share one. Two processes of the same code differ by a twentieth as long as they live, by
where their memory lies; so both sides are started anew several times. The spans go to a receiver that throws them away:
what a receiver does with them is its own business.
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

import httpx
import typer

from benchmarks.measure import Sample, Side, alternate
from benchmarks.report import report, table, warnings
from benchmarks.serve import SILENT
from benchmarks.stage import running_engine, running_side, running_sink
from benchmarks.variants import Shape, Variant
from perdure.dev.interrupts import Interrupted, Interrupts
from perdure.dev.terminal import Terminal
from perdure.engine import EngineProcess, LocatedEngine, locate_engine
from perdure.errors import PerdureError
from perdure.observability.tracing_setup import engine_tracing
from perdure.terminal import error_console
from services.runtime.settings import PlatformSettings

_WARM_UP: Final = timedelta(seconds=3)


@dataclass(frozen=True)
class Plan:
    """How long to compare.

    Args:
        starts: How often both sides are started anew.
        rounds: How often each side has its turn in each of them, for each number of clients.
        turn: How long a turn takes.
        clients: The numbers of clients to measure with.
        traced: The share of traces that is kept; 0: metrics alone.
        ours_alone: Both sides share an engine, so that what it pays for its own spans isn't counted.
    """

    starts: int
    rounds: int
    turn: timedelta
    clients: tuple[int, ...]
    traced: float
    ours_alone: bool


@dataclass(frozen=True)
class _Place:
    engine: LocatedEngine
    config_file: Path
    home: Path


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
        place = _Place(engine, settings.engine_config.resolve(), home)
        measured = asyncio.run(_interruptible(plan, place, terminal))
    except Interrupted as interrupt:
        return interrupt.exit_code
    finally:
        shutil.rmtree(home)
    described = {
        "left": "observed",
        "right": "unobserved",
        "traced": str(plan.traced),
        "ours_alone": str(plan.ours_alone),
        "starts": str(plan.starts),
        "rounds": str(plan.rounds),
    }
    result = report(measured, described, engine.version)
    terminal.draw(table(result))
    for warning in warnings(result):
        terminal.say(f"beware: {warning}", "bold yellow")
    terminal.say(f"kept in {result.save(results)}")
    return 0


async def _interruptible(plan: Plan, place: _Place, terminal: Terminal) -> list[list[Sample]]:
    interrupts = Interrupts()
    with interrupts.listening():
        return await interrupts.unless_asked(_measured(plan, place, terminal))


async def _measured(plan: Plan, place: _Place, terminal: Terminal) -> list[list[Sample]]:
    def tell(sample: Sample) -> None:
        terminal.say(f"  {sample.clients:>3} clients  {sample.side:<12} {sample.throughput:7.1f} sagas/s")

    keys = (f"trip-{number}" for number in count())
    async with AsyncExitStack() as stack:
        sink = await stack.enter_async_context(running_sink(place.home))
        kept_by_engine, followed = _settings(plan.traced, sink)
        traced = await _engine(stack, place, "observed", kept_by_engine)
        # What the engine pays for its own spans is not to be counted: then it is one and the same.
        is_shared = plan.ours_alone or not plan.traced
        plain = traced if is_shared else await _engine(stack, place, "unobserved", {})
        measured: list[list[Sample]] = []
        for start in range(plan.starts):
            async with AsyncExitStack() as services:
                sides: list[Side] = []
                for label, engine, variables in (("observed", traced, followed), ("unobserved", plain, {SILENT: "1"})):
                    side = running_side(
                        engine,
                        place.home,
                        label=label,
                        variant=Variant.PERDURE,
                        shape=Shape.CALLS,
                        workflow=f"Trips{label.capitalize()}{start}",
                        environment=variables,
                    )
                    sides.append(await services.enter_async_context(side))
                for number in plan.clients:
                    measured += await alternate(
                        sides, keys, clients=number, rounds=plan.rounds, duration=plan.turn, warm_up=_WARM_UP, tell=tell
                    )
        async with httpx.AsyncClient() as client:
            terminal.say(f"{int((await client.get(sink)).text) / 1e6:.1f} MB of spans were sent")
        return measured


async def _engine(stack: AsyncExitStack, place: _Place, label: str, settings: Mapping[str, str]) -> EngineProcess:
    folder = place.home / label
    folder.mkdir()
    return await stack.enter_async_context(running_engine(place.engine.path, place.config_file, folder, settings))


def _settings(traced: float, sink: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables of engine and services by which a share of the traces is kept."""
    if not traced:
        return {}, {}
    # The engine decides which traces are kept, and the services follow it: see docs/how-to/deploy.md.
    sent = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink}
    kept = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(traced)}
    return {**engine_tracing(sent), **kept}, {**sent, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}


def main(
    *,
    starts: Annotated[int, typer.Option(min=1, max=50, help="How often both sides are started anew.")] = 8,
    rounds: Annotated[int, typer.Option(min=2, max=100, help="Turns of each side in each start, for each client.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="How long a turn takes.")] = 2,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, max=512, help="Clients at once; repeat it.", show_default="1, 32")
    ] = None,
    traced: Annotated[float, typer.Option(min=0, max=1, help="Share of traces that is kept; 0: metrics alone.")] = 1,
    ours_alone: Annotated[bool, typer.Option("--ours-alone", help="Without the engine's own spans.")] = False,
) -> None:
    """Compare a 3-step saga with metrics and traces with the same without."""
    try:
        plan = Plan(starts, rounds, timedelta(seconds=seconds), tuple(clients or (1, 32)), traced, ours_alone)
        code = bench(plan, PlatformSettings.read(), Terminal())
    except PerdureError as error:
        error_console.print_lines(f"bench: {error}")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    typer.run(main)

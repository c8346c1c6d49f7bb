"""Overhead of metrics and traces, including the engine's, on the 3-step saga.

python -m benchmarks.observability --help

Each side has its own engine, except with --ours-alone, which omits the engine's spans. Two processes of the same code
differ by about 5 %, so both sides are restarted several times. The receiver discards the spans.
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

from benchmarks.environment import running_engine, running_side, running_sink
from benchmarks.measure import Sample, Side, alternate
from benchmarks.report import report, table, warnings
from benchmarks.serve import SILENT
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
    """Plan of the comparison.

    Args:
        starts: Number of restarts of both sides.
        rounds: Turns per side, restart and number of clients.
        turn: Duration of a turn.
        clients: Numbers of concurrent clients.
        traced: Share of sampled traces; 0 for metrics only.
        ours_alone: Both sides share an engine, so that its spans do not count.
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
    """Compare, print the result, and store it in ``.local/bench``.

    Args:
        plan: The plan.
        settings: Paths of the engine and its settings.
        terminal: Output.

    Returns:
        The exit code: 0, or 128 and the signal's number after a signal.

    Raises:
        PerdureError: The measurement failed.
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
        return await interrupts.run_until_stopped(_measured(plan, place, terminal))


async def _measured(plan: Plan, place: _Place, terminal: Terminal) -> list[list[Sample]]:
    def tell(sample: Sample) -> None:
        terminal.say(f"  {sample.clients:>3} clients  {sample.side:<12} {sample.throughput:7.1f} sagas/s")

    keys = (f"trip-{number}" for number in count())
    async with AsyncExitStack() as stack:
        sink = await stack.enter_async_context(running_sink(place.home))
        kept_by_engine, followed = _settings(plan.traced, sink)
        traced = await _engine(stack, place, "observed", kept_by_engine)
        # Without the engine's spans, both sides share an engine.
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
    """Return the environment variables that set the share of sampled traces."""
    if not traced:
        return {}, {}
    # The engine samples traces and the services follow: see docs/how-to/deploy.md.
    sent = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink}
    kept = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(traced)}
    return {**engine_tracing(sent), **kept}, {**sent, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}


def main(
    *,
    starts: Annotated[int, typer.Option(min=1, max=50, help="Number of restarts of both sides.")] = 8,
    rounds: Annotated[int, typer.Option(min=2, max=100, help="Turns per side, restart and number of clients.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="Duration of a turn.")] = 2,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, max=512, help="Concurrent clients; repeatable.", show_default="1, 32")
    ] = None,
    traced: Annotated[float, typer.Option(min=0, max=1, help="Share of sampled traces; 0 for metrics only.")] = 1,
    ours_alone: Annotated[bool, typer.Option("--ours-alone", help="Without the engine's own spans.")] = False,
) -> None:
    """Compare a 3-step saga with and without metrics and traces."""
    try:
        plan = Plan(starts, rounds, timedelta(seconds=seconds), tuple(clients or (1, 32)), traced, ours_alone)
        code = bench(plan, PlatformSettings.read(), Terminal())
    except PerdureError as error:
        error_console.print_lines(f"bench: {error}")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    typer.run(main)

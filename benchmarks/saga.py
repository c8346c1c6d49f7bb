"""`make bench`: a saga of three steps with Perdure and on the SDK alone, alternating.

python -m benchmarks.saga --help
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.environment import running_engine, running_side
from benchmarks.measure import Sample, Side, alternate
from benchmarks.report import Report, report, table, warnings
from benchmarks.variants import Shape, Variant
from perdure.dev.interrupts import Interrupted, Interrupts, raising_interrupts
from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine, locate_engine
from perdure.errors import PerdureError
from perdure.terminal import error_console
from services.runtime.settings import PlatformSettings

_WARM_UP: Final = timedelta(seconds=3)
_START_AND_STOP: Final = timedelta(seconds=10)


@dataclass(frozen=True)
class Plan:
    """Plan of the comparison.

    Args:
        left: Variant of the left side.
        right: Variant of the right side.
        right_library: ``framework`` folder of the right side's Perdure; by default that of this checkout.
        shape: Kind of the steps.
        clients: Numbers of concurrent clients.
        rounds: Turns per side and number of clients.
        turn: Duration of a turn.
    """

    left: Variant
    right: Variant
    right_library: Path | None
    shape: Shape
    clients: tuple[int, ...]
    rounds: int
    turn: timedelta

    @property
    def labels(self) -> tuple[str, str]:
        """Labels of both sides."""
        if self.right_library is not None:
            return self.left, f"{self.right} (other library)"
        return (self.left, f"{self.right} (again)") if self.left == self.right else (self.left, self.right)

    @property
    def takes(self) -> timedelta:
        """Total duration of all turns."""
        return len(self.clients) * 2 * (self.rounds * self.turn + _WARM_UP)

    def described(self) -> dict[str, str]:
        """Return the plan as text for the report."""
        return {
            "left": self.labels[0],
            "right": self.labels[1],
            "shape": self.shape,
            "clients": ",".join(map(str, self.clients)),
            "rounds": str(self.rounds),
            "seconds": f"{self.turn.total_seconds():g}",
        }


def bench(plan: Plan, settings: PlatformSettings, terminal: Terminal) -> int:
    """Compare two variants of the saga, print the result, and store it in ``.local/bench``.

    Args:
        plan: The plan.
        settings: Paths of the engine and its settings.
        terminal: Output.

    Returns:
        The exit code: 0, or 128 and the signal's number after a signal.

    Raises:
        PerdureError: The measurement failed. The message names the logs.
    """
    results = settings.local_dir.resolve() / "bench"
    try:
        with raising_interrupts():
            engine = locate_engine(settings.local_dir.resolve() / "engine")
    except Interrupted as interrupt:
        return interrupt.exit_code
    terminal.say(f"{engine}; about {(plan.takes + _START_AND_STOP).total_seconds():.0f} s")
    results.mkdir(parents=True, exist_ok=True)
    # Beside the platform's data, because the disk's speed matters.
    home = Path(tempfile.mkdtemp(prefix="run-", dir=results))
    try:
        rounds = asyncio.run(_interruptible(plan, settings.engine_config.resolve(), engine, home, terminal))
    except Interrupted as interrupt:
        shutil.rmtree(home)
        return interrupt.exit_code
    except PerdureError:
        terminal.say(f"logs are kept in {home}")
        raise
    shutil.rmtree(home)
    result = report(rounds, plan.described(), engine.version)
    _show(result, result.save(results), terminal)
    return 0


async def _interruptible(
    plan: Plan, config_file: Path, engine: LocatedEngine, home: Path, terminal: Terminal
) -> list[list[Sample]]:
    interrupts = Interrupts()
    with interrupts.listening():
        return await interrupts.run_until_stopped(_measured(plan, config_file, engine, home, terminal))


async def _measured(
    plan: Plan, config_file: Path, engine: LocatedEngine, home: Path, terminal: Terminal
) -> list[list[Sample]]:
    def tell(sample: Sample) -> None:
        terminal.say(
            f"  {sample.clients:>3} clients  {sample.side:<20} {sample.throughput:7.1f} sagas/s  "
            f"p50 {sample.p50_ms:6.1f} ms  p99 {sample.p99_ms:6.1f} ms"
        )

    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_engine(engine.path, config_file, home))
        sides: list[Side] = []
        library = {} if plan.right_library is None else {"PYTHONPATH": str(plan.right_library.resolve())}
        for label, variant, workflow, environment in (
            (plan.labels[0], plan.left, "TripsLeft", {}),
            (plan.labels[1], plan.right, "TripsRight", library),
        ):
            side = running_side(
                running,
                home,
                label=label,
                variant=variant,
                shape=plan.shape,
                workflow=workflow,
                environment=environment,
            )
            sides.append(await stack.enter_async_context(side))
        keys = _keys()
        measured: list[list[Sample]] = []
        for clients in plan.clients:
            measured += await alternate(
                sides, keys, clients=clients, rounds=plan.rounds, duration=plan.turn, warm_up=_WARM_UP, tell=tell
            )
        return measured


def _keys() -> Iterator[str]:
    return (f"trip-{number}" for number in count())


def _show(result: Report, path: Path, terminal: Terminal) -> None:
    terminal.say()
    terminal.draw(table(result))
    terminal.say("a ratio is the median of the ratios of each round, beside it their first and third quartile")
    for warning in warnings(result):
        terminal.say(f"beware: {warning}", "bold yellow")
    terminal.say(f"kept in {path}")


def main(
    *,
    rounds: Annotated[int, typer.Option(min=2, max=100, help="Turns per side and number of clients.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="Duration of a turn.")] = 2,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, max=512, help="Concurrent clients; repeatable.", show_default="1, 32"),
    ] = None,
    shape: Annotated[Shape, typer.Option(help="Kind of the steps.")] = Shape.CALLS,
    left: Annotated[Variant, typer.Option(help="Variant of the left side.")] = Variant.PERDURE,
    right: Annotated[
        Variant | None,
        typer.Option(help="Variant of the right side.", show_default="by-hand, with --right-library perdure"),
    ] = None,
    right_library: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder 'framework' of another checkout, for the right side.",
        ),
    ] = None,
) -> None:
    """Compare a 3-step saga with Perdure and on the SDK alone, on a separate engine."""
    plan = Plan(
        left=left,
        right=right or (Variant.BY_HAND if right_library is None else Variant.PERDURE),
        right_library=right_library,
        shape=shape,
        clients=tuple(clients or (1, 32)),
        rounds=rounds,
        turn=timedelta(seconds=seconds),
    )
    try:
        code = bench(plan, PlatformSettings.read(), Terminal())
    except PerdureError as error:
        error_console.print_lines(f"bench: {error}")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    typer.run(main)

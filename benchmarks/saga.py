"""`make bench`: a saga of three steps through perdure and by hand on the SDK, side by side and alternating.

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

from benchmarks.measure import Sample, Side, alternate
from benchmarks.report import Report, report, table, warnings
from benchmarks.stage import running_engine, running_side
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
    """What to compare, and for how long.

    Args:
        left: How the saga of the left side is written.
        right: How the saga of the right side is written.
        right_library: A ``framework`` folder to take perdure from for the right side; this checkout's when None.
        shape: What a step is.
        clients: The numbers of clients to measure with.
        rounds: How often each side has its turn, for each number of clients.
        turn: How long a turn takes.
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
        """What the sides are called."""
        if self.right_library is not None:
            return self.left, f"{self.right} (other library)"
        return (self.left, f"{self.right} (again)") if self.left == self.right else (self.left, self.right)

    @property
    def takes(self) -> timedelta:
        """How long all turns take together."""
        return len(self.clients) * 2 * (self.rounds * self.turn + _WARM_UP)

    def described(self) -> dict[str, str]:
        """Return the plan in words, for the report."""
        return {
            "left": self.labels[0],
            "right": self.labels[1],
            "shape": self.shape,
            "clients": ",".join(map(str, self.clients)),
            "rounds": str(self.rounds),
            "seconds": f"{self.turn.total_seconds():g}",
        }


def bench(plan: Plan, settings: PlatformSettings, terminal: Terminal) -> int:
    """Compare two ways of writing the saga, show the result, and keep it in ``.local/bench``.

    Args:
        plan: What to compare.
        settings: Where the engine and its settings are.
        terminal: Where to show it.

    Returns:
        The exit code: 0, or 128 and the signal's number when it was stopped.

    Raises:
        PerdureError: It can't be measured. Logs are kept, and the message says where.
    """
    results = settings.local_dir.resolve() / "bench"
    try:
        with raising_interrupts():
            engine = locate_engine(settings.local_dir.resolve() / "engine")
    except Interrupted as interrupt:
        return interrupt.exit_code
    terminal.say(f"{engine}; about {(plan.takes + _START_AND_STOP).total_seconds():.0f} s")
    results.mkdir(parents=True, exist_ok=True)
    # Beside the platform's own data: how fast the disk is matters.
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
        return await interrupts.unless_asked(_measured(plan, config_file, engine, home, terminal))


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
    rounds: Annotated[int, typer.Option(min=2, max=100, help="Turns of each side, for each number of clients.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="How long a turn takes.")] = 2,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, max=512, help="Clients at once; repeat it for several.", show_default="1, 32"),
    ] = None,
    shape: Annotated[Shape, typer.Option(help="What a step is.")] = Shape.CALLS,
    left: Annotated[Variant, typer.Option(help="How the left side's saga is written.")] = Variant.PERDURE,
    right: Annotated[
        Variant | None,
        typer.Option(
            help="How the right side's saga is written.", show_default="by-hand, with --right-library perdure"
        ),
    ] = None,
    right_library: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Another checkout's folder 'framework', to take perdure from for the right side.",
        ),
    ] = None,
) -> None:
    """Compare a 3-step saga through perdure with the same by hand on the SDK, on an engine of its own."""
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

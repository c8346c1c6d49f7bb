"""Run one system test as a command: ``python -m tests.system demo``."""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from perdure.dev.terminal import Terminal
from perdure.errors import PerdureError
from perdure.terminal import error_console, run_command_line
from services.runtime.settings import PlatformSettings
from tests.system.attacks.command import attack as attack_platform
from tests.system.chaos.chaos import chaos as play_chaos
from tests.system.chaos.disk import enter_private_mounts
from tests.system.chaos.soak import soak as play_soak
from tests.system.cluster.command import try_cluster
from tests.system.observability.observe import observe as show_observed
from tests.system.outbox.command import try_outbox
from tests.system.scenarios.demo import demo as play

logging.getLogger("perdure").addHandler(logging.NullHandler())

app = typer.Typer(
    help="System tests of the trips platform. Each starts a separate platform on free ports and removes it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def demo() -> None:
    """Run every scenario; exit 1 if one ends differently than expected."""
    _exit_with(lambda: play(PlatformSettings.read(), Terminal()))


@app.command()
def chaos(
    seed: Annotated[
        int | None, typer.Option(help="Seed of the random choices; the same seed repeats them. [random]")
    ] = None,
    trips: Annotated[int, typer.Option(min=1, max=50_000, help="Number of trips to book.")] = 100,
) -> None:
    """Book trips while processes, connections, disks and the database fail, then compare every answer with the data."""
    enter_private_mounts()
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    _exit_with(lambda: play_chaos(PlatformSettings.read(), Terminal(), seed=chosen, count=trips))


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.1, max=600, help="Duration of the bookings.")] = 10,
) -> None:
    """Book trips at a steady rate; exit 1 if memory, descriptors or latency grow."""
    _exit_with(lambda: play_soak(PlatformSettings.read(), Terminal(), minutes=minutes))


@app.command()
def outbox(
    orders: Annotated[int, typer.Option(min=20, max=1_000_000, help="Number of orders to place.")] = 10_000,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the random choices; the same seed repeats them. [random]")
    ] = None,
) -> None:
    """Place orders through the outbox while processes and connections are killed; count what the engine started."""
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    _exit_with(lambda: try_outbox(PlatformSettings.read(), Terminal(), orders=orders, seed=chosen))


@app.command()
def observe() -> None:
    """Run the scenarios, then print the trace of a trip and the value of every dashboard panel."""
    _exit_with(lambda: show_observed(PlatformSettings.read(), Terminal()))


@app.command()
def cluster() -> None:
    """Book trips on three engine nodes while one is killed and another is stopped, then audit the databases."""
    _exit_with(lambda: try_cluster(PlatformSettings.read(), Terminal()))


@app.command()
def attack() -> None:
    """Run every attack of the table; exit 1 if one succeeds or changes anything."""
    _exit_with(lambda: attack_platform(PlatformSettings.read(), Terminal()))


def _exit_with(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; print an error as one line on standard error."""
    try:
        code = command()
    except PerdureError as error:
        error_console.print_lines(f"tests.system: {error}")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    run_command_line("tests.system", app)

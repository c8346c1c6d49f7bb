"""CPU time that imports and commands take to start: `python -m benchmarks.start`.

On a machine under load, compare the ratios to `import restate`, which every service needs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Final

import typer
from rich.table import Table

from perdure.terminal import TerminalConsole

_MAIN: Final = "from perdure.cli.main import main; main()"
_STARTS: Final = {
    "python": ("pass",),
    "import restate": ("import restate",),
    "import perdure": ("import perdure",),
    "a first service": ("from perdure import ControlPlaneService, DataPlaneService, Orchestration, serve",),
    "perdure --help": (_MAIN, "--help"),
    "perdure sagas --help": (_MAIN, "sagas", "--help"),
    "perdure schedules list --help": (_MAIN, "schedules", "list", "--help"),
}


def _cpu_seconds(arguments: tuple[str, ...]) -> float:
    process = subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def _least(measure: Callable[[], float], times: int) -> float:
    return min(measure() for _ in range(times))


def main(times: Annotated[int, typer.Option(min=1, help="Starts of each command; the least counts.")] = 10) -> None:
    """Print the CPU time of each start, the least of several."""
    seconds = {name: _least(lambda of=of: _cpu_seconds(of), times) for name, of in _STARTS.items()}  # type: ignore[misc] # bound
    table = Table("start", "CPU seconds", "of import restate")
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.3f}", f"{taken / seconds['import restate']:.2f}")
    TerminalConsole().print(table)


if __name__ == "__main__":
    typer.run(main)

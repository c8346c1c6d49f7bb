"""Terminal output of long-running commands: plain lines, with colour and a progress bar on a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from pydantic import BaseModel
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from perdure import StatusData
from perdure._runtime.plain_text import escape_invisible
from perdure.terminal import TerminalConsole

_WIDTH_WITHOUT_TERMINAL: Final = 150


class ShowStatus(Protocol):
    """Displays the progress of a workflow."""

    def __call__(self, status: StatusData) -> None:
        """Display a status; ignore one that is unchanged."""


class Terminal:
    """Standard output of a command.

    Output stops silently when the terminal or pipe is closed, because the command still has to stop its processes.
    """

    def __init__(self) -> None:
        self._console = _Console()
        if not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = _WIDTH_WITHOUT_TERMINAL

    def say(self, line: str = "", style: str | None = None) -> None:
        """Print a line without wrapping; indent the lines after the first.

        Args:
            line: The text.
            style: Rich style, used on a terminal.
        """
        with self._ignoring_closed_output():
            self._console.print_lines(line, style)

    def say_for(self, source: str, line: str, style: str) -> None:
        """Print a line of another process, with its name as a prefix.

        Args:
            source: Name of the process, padded to a column.
            line: The text.
            style: Rich style of the prefix.
        """
        with self._ignoring_closed_output():
            self._console.print_prefixed(f"{source} | ", line, style)

    def print_model(self, answer: BaseModel) -> None:
        """Print a model as JSON.

        Args:
            answer: The model.
        """
        with self._ignoring_closed_output():
            self._console.print_model(answer)

    def draw(self, renderable: RenderableType) -> None:
        """Print a Rich renderable, such as a table, fitted to the width of the terminal.

        Args:
            renderable: The renderable.
        """
        with self._ignoring_closed_output():
            self._console.print(renderable)

    @contextmanager
    def progress(self) -> Iterator[ShowStatus]:
        """Display progress within the context: a bar on a terminal, otherwise one line per change."""
        if not self._console.is_terminal:
            yield self._lines()
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("starting", total=1.0)
            yield lambda status: progress.update(task, completed=status.progress, description=describe_status(status))

    def _lines(self) -> ShowStatus:
        shown: list[str] = []

        def show(status: StatusData) -> None:
            line = f"  {status.progress:4.0%}  {describe_status(status)}"
            if shown[-1:] != [line]:
                shown.append(line)
                self.say(line)

        return show

    @contextmanager
    def _ignoring_closed_output(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._console.discard_output()


class _Console(TerminalConsole):
    def print_prefixed(self, prefix: str, line: str, style: str) -> None:
        """Print a line after a styled prefix, without wrapping it."""
        self.print(Text.assemble((prefix, style), escape_invisible(line)), soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Stop printing. Rich would exit here, and leave processes running."""
        self.discard_output()

    def discard_output(self) -> None:
        """Discard all output, including buffered text, which would fail again at interpreter exit."""
        self.quiet = True
        with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())


def describe_status(status: StatusData) -> str:
    """Return a one-line description of a status."""
    now = f"{status.phase}: {status.current_step}" if status.current_step else status.phase
    done = ", ".join(status.completed_steps)
    return f"{now} (done: {done})" if done else now

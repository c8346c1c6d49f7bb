"""What the launcher tells people: plain lines, or colour and a progress bar when a terminal is there to show them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from pydantic import BaseModel
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from perdure import StatusData
from perdure.terminal import TerminalConsole

_WIDTH_OF_A_FILE: Final = 150


class ShowStatus(Protocol):
    """Shows how far a trip is."""

    def __call__(self, status: StatusData) -> None:
        """Show a status; an unchanged one changes nothing."""


class Terminal:
    """Standard output, for people.

    A terminal that was closed, or a pipe whose reader has gone, makes it fall silent: there is nobody left to tell, and
    processes are still to be stopped.
    """

    def __init__(self) -> None:
        self._console = _Console()
        if not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = _WIDTH_OF_A_FILE

    def say(self, line: str = "", style: str | None = None) -> None:
        """Print a line, however long. Of a text with several lines, those after the first are indented.

        Args:
            line: The line.
            style: How, in rich's words, on a terminal.
        """
        with self._while_anybody_listens():
            self._console.print_lines(line, style)

    def print_model(self, answer: BaseModel) -> None:
        """Print a model as JSON.

        Args:
            answer: The model.
        """
        with self._while_anybody_listens():
            self._console.print_model(answer)

    def draw(self, what: RenderableType) -> None:
        """Print something that rich fits into the terminal's width, such as a table.

        Args:
            what: The table.
        """
        with self._while_anybody_listens():
            self._console.print(what)

    @contextmanager
    def progress(self) -> Iterator[ShowStatus]:
        """Show a trip's progress as long as the context lasts: a bar on a terminal, else a line for each change."""
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
    def _while_anybody_listens(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._console.fall_silent()


class _Console(TerminalConsole):
    def on_broken_pipe(self) -> None:
        """Go on in silence; rich would end the process here, with other processes still to be stopped."""
        self.fall_silent()

    def fall_silent(self) -> None:
        """Print nothing any more, nor what is still in a buffer, which would fail again when the interpreter ends."""
        self.quiet = True
        with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())


def describe_status(status: StatusData) -> str:
    """Say in a few words how far a trip is.

    Args:
        status: Its status.
    """
    now = f"{status.phase}: {status.current_step}" if status.current_step else status.phase
    done = ", ".join(status.completed_steps)
    return f"{now} (done: {done})" if done else now

"""Terminal output that escapes untrusted text.

In error messages, names and reasons, an escape sequence could clear the screen or forge a line, and Rich would
interpret brackets as markup. All commands print through `TerminalConsole`, which escapes text before layout.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, JustifyMethod, OverflowMethod, RenderableType
from rich.highlighter import Highlighter
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from perdure._runtime.plain_text import check_visible, escape_invisible, escape_json, escape_rest

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["TerminalConsole", "console", "error_console", "multiline_text", "run_command_line"]


class TerminalConsole(Console):
    """A Rich console that prints text literally: no markup, no emoji codes, no invisible characters.

    Args:
        stderr: Print to standard error instead of standard output.
        width: Number of columns; the terminal's own by default.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,  # noqa: ARG002 - Rich's signature
        markup: bool | None = None,  # noqa: ARG002 - Rich's signature
        highlight: bool | None = None,  # noqa: ARG002 - Rich's signature
        highlighter: Callable[[str | Text], Text] | Highlighter | None = None,  # noqa: ARG002 - Rich's signature
    ) -> Text:
        """Return a string as Rich text. Rich calls this for each string that it measures or prints."""
        return Text(escape_invisible(text), style=style, justify=justify, overflow=overflow)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, and escape invisible characters of renderables that are not strings."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_rest(segment.text, keep="\n"), segment.style)

    def say(self, line: str, style: str | None = None) -> None:
        """Print a line without wrapping it.

        Args:
            line: The line.
            style: Rich style.
        """
        self.print(line, style=style, soft_wrap=True)

    def print_lines(self, text: str, style: str | None = None) -> None:
        """Print a text of several lines, indented after the first so that untrusted text cannot forge a line.

        Args:
            text: The text.
            style: Rich style.
        """
        first, *more = text.split("\n")
        self.say(first, style)
        for line in more:
            self.say(f"  {line}", style)

    def print_model(self, answer: BaseModel) -> None:
        """Print a model as JSON."""
        self.print(Text(escape_json(answer.model_dump_json(indent=2))), soft_wrap=True)


def multiline_text(text: str) -> Text:
    """Return a text with its line breaks, such as indented JSON, for a cell of a table."""
    return Text(escape_invisible(text, keep="\n"))


console = TerminalConsole()
"""Standard output."""

error_console = TerminalConsole(stderr=True)
"""Standard error."""


def run_command_line(program: str, commands: Callable[[], Any], arguments: Sequence[str] | None = None) -> None:
    """Run a command line. An error is printed to standard error, and the exit code is 1.

    Args:
        program: The program's name, for messages.
        commands: Runs the commands.
        arguments: Command-line arguments; by default those of the process.

    Raises:
        SystemExit: A command failed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals without UTF-8
    sys.excepthook = _print_traceback
    for argument in sys.argv[1:] if arguments is None else arguments:
        # Usage errors print arguments. JSON may contain line breaks and tabs, file names surrogates.
        try:
            check_visible(argument.encode("utf-8", "replace").decode(), allowed="\n\r\t\u200c\u200d\ufe0e\ufe0f")
        except ValueError as error:
            error_console.say(f"{program}: the argument '{argument[:200]}' {error}")
            sys.exit(2)
    try:
        commands()
    except Exception as error:
        # Imported here, since it loads Restate's SDK, and a help text needs none.
        from perdure.errors import PerdureError  # noqa: PLC0415

        if not isinstance(error, PerdureError):
            raise
        error_console.print_lines(f"{program}: {error}")
        sys.exit(1)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected error as Python does, escaped and indented."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    for entry in traceback.format_exception(kind, error, trace):
        error_console.print_lines(entry.rstrip("\n"))

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
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, ConsoleDimensions, ConsoleOptions, JustifyMethod, OverflowMethod, RenderableType
from rich.highlighter import Highlighter
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from perdure._runtime.plain_text import check_visible, escape_invisible, escape_json, escape_rest, shorten

if TYPE_CHECKING:
    from pydantic import BaseModel


_MIN_COLUMNS: Final = 20


class TerminalConsole(Console):
    """A Rich console that prints text literally: no markup, no emoji codes, no invisible characters.

    Args:
        stderr: Print to standard error instead of standard output.
        width: Number of columns; the terminal's own by default.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    @property
    def size(self) -> ConsoleDimensions:
        """Number of columns, at least 20, and of lines. Rich prints nothing in no columns."""
        found = super().size
        return ConsoleDimensions(max(found.width, _MIN_COLUMNS), found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self.width, self.height = new_size

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
        # Rich would cut a word that is wider than its column, such as an ID.
        return Text(escape_invisible(text), style=style, justify=justify, overflow=overflow or "fold")

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
    return Text(escape_invisible(text, keep="\n"), overflow="fold")


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
        explanation = _explanation(error)
        if explanation is None:
            raise
        error_console.print_lines(f"{program}: {explanation}")
        sys.exit(1)


def _explanation(error: Exception) -> str | None:
    """Return the text of an error that the user can correct; None for a fault of the program."""
    # Imported here, since they load Restate's SDK, and a help text needs none.
    from pydantic import ValidationError  # noqa: PLC0415

    from perdure._runtime.serdes import invalid_input  # noqa: PLC0415
    from perdure.errors import PerdureError, TerminalError  # noqa: PLC0415

    if isinstance(error, ValidationError):
        return invalid_input(error).message
    if isinstance(error, UnicodeEncodeError):
        return f"'{shorten(error.object, 200)}' is not UTF-8; pass UTF-8 text, or set LC_ALL=C.UTF-8"
    return str(error) if isinstance(error, PerdureError | TerminalError | OSError) else None


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected error as Python does, escaped and indented."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    for entry in traceback.format_exception(kind, error, trace):
        error_console.print_lines(entry.rstrip("\n"))

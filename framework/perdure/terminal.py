"""Terminal output in which untrusted text is inert.

Error messages, names and reasons come from outside. On a terminal, an escape sequence in one of them could clear the
screen or forge a line, and Rich would read brackets as markup. All commands print through `TerminalConsole`. It escapes
text before layout, so columns are aligned.
"""

from __future__ import annotations

import io
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, ConsoleOptions, JustifyMethod, OverflowMethod, RenderableType
from rich.highlighter import Highlighter
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from perdure._runtime.plain_text import check_visible, escape_invisible, escape_json, is_visible

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["TerminalConsole", "console", "error_console", "run_command_line", "several_lines"]

_NOT_ASCII: Final = re.compile(r"[^ -~\n]")


class TerminalConsole(Console):
    """A Rich console that prints texts literally: no markup, no emoji codes, no invisible characters.

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
        """Return a string as Rich text; Rich calls this for each string that it measures or prints."""
        return Text(escape_invisible(text), style=style, justify=justify, overflow=overflow)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, and escape invisible characters of renderables that are not strings."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(_NOT_ASCII.sub(_shown, segment.text), segment.style)

    def say(self, line: str, style: str | None = None) -> None:
        """Print one line, however long.

        Args:
            line: The line.
            style: Its style on a terminal, in Rich's words.
        """
        self.print(line, style=style, soft_wrap=True)

    def say_all(self, text: str, style: str | None = None) -> None:
        """Print a text of several lines. Those after the first are indented, so that none looks like a line of ours.

        Args:
            text: The text.
            style: Its style on a terminal, in Rich's words.
        """
        first, *more = text.split("\n")
        self.say(first, style)
        for line in more:
            self.say(f"  {line}", style)

    def say_json(self, answer: BaseModel) -> None:
        """Print a model as JSON, for scripts.

        Args:
            answer: The model.
        """
        self.print(Text(escape_json(answer.model_dump_json(indent=2))), soft_wrap=True)


def _shown(found: re.Match[str]) -> str:
    return found[0] if is_visible(found[0]) else escape_invisible(found[0])


def several_lines(text: str) -> Text:
    """Return a text whose line breaks are ours, for a cell of a table.

    Args:
        text: The text, for example indented JSON.
    """
    return Text(escape_invisible(text, keep="\n"))


console = TerminalConsole()
"""Standard output."""

error_console = TerminalConsole(stderr=True)
"""Standard error."""


def run_command_line(program: str, commands: Callable[[], Any], arguments: Sequence[str] | None = None) -> None:
    """Run a command line; an error is one sentence on standard error, and exit code 1.

    Args:
        program: The program's name, for messages.
        commands: Runs the commands.
        arguments: The command-line arguments; the process's own by default.

    Raises:
        SystemExit: With the exit code of a command that failed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 gets escapes
    sys.excepthook = _print_traceback
    for argument in sys.argv[1:] if arguments is None else arguments:
        # Usage errors repeat arguments. Line breaks and tabs are left to JSON, surrogates to names of files.
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
        error_console.say_all(f"{program}: {error}")
        sys.exit(1)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected error as Python does; texts in it are escaped, and start no line."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    for entry in traceback.format_exception(kind, error, trace):
        error_console.say_all(entry.rstrip("\n"))

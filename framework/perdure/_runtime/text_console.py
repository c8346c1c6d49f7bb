"""Rich console that escapes untrusted text; use it through `perdure.terminal`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from rich.console import Console, ConsoleDimensions, ConsoleOptions, JustifyMethod, OverflowMethod, RenderableType
from rich.highlighter import Highlighter
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from perdure._runtime.plain_text import escape_invisible, escape_json, escape_rest

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

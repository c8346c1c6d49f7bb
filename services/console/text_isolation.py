"""Isolation of untrusted text in pages, so that it cannot reorder or hide the text beside it.

Autoescaping prevents markup injection. It does not prevent a name in Hebrew, or one with a direction override, from
changing the order of the surrounding words. So each expression of a template passes one more filter, chosen by its
position in the HTML:

===================================== ==============================================================================
content of an element                 invisible characters as escapes, ``<bdi>`` around a value that is not plain ASCII
visible attribute, title, option      the same with Unicode's isolates, for example in ``title`` or ``data-confirm``
text area                             invisible characters as JSON escapes, which keep their meaning when submitted
any other attribute                   unchanged: an address, or a value that is sent back
===================================== ==============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from jinja2 import Environment, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from markupsafe import Markup

from perdure._runtime.plain_text import escape_invisible, escape_json

VISIBLE_ATTRIBUTES: Final = frozenset({"alt", "aria-label", "data-confirm", "label", "placeholder", "title"})
"""Attributes whose values users see."""

_WHITESPACE: Final = "\n\t"
_TAG: Final = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)")
_NAME: Final = re.compile(r"[^\s=/>\"']+")
_TEXT_ONLY: Final = frozenset({"title", "option"})
_RAW: Final = frozenset({"script", "style"})


def _isolated(value: Any) -> Any:
    if hasattr(value, "__html__"):  # output of a macro, or marked as safe: already isolated
        return value
    shown = escape_invisible(str(value), keep=_WHITESPACE)
    return shown if shown.isascii() else Markup("<bdi>{}</bdi>").format(shown)


def _isolated_text(value: Any) -> str:
    shown = escape_invisible(str(value), keep=_WHITESPACE)
    return shown if shown.isascii() else f"\u2068{shown}\u2069"


def _editable(value: Any) -> str:
    return escape_json(str(value), keep="\r\n\t")


_FILTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "isolated": _isolated,
    "isolated_text": _isolated_text,
    "editable": _editable,
}


class _Position:
    """The position in the HTML of a template."""

    def __init__(self) -> None:
        self._element: str | None = None  # an element that contains only text
        self._tag: str | None = None
        self._attribute = ""
        self._quote: str | None = None

    def filter(self) -> str | None:
        """Return the filter for an expression at this position.

        Raises:
            ValueError: Expressions are not permitted here.
        """
        if self._quote is not None:
            return "isolated_text" if self._attribute in VISIBLE_ATTRIBUTES else None
        if self._tag is not None:
            raise ValueError("an expression in a tag must be in a quoted attribute")
        if self._element in _RAW:
            raise ValueError(f"expressions are not permitted in <{self._element}>")
        if self._element == "textarea":
            return "editable"
        return "isolated_text" if self._element in _TEXT_ONLY else "isolated"

    def enter(self, element: str | None) -> None:
        """Enter an element that contains only text, or leave it (None)."""
        self._element = element

    def advance(self, html: str) -> None:
        """Advance over HTML of the template."""
        at = 0
        while at < len(html):
            if self._quote is not None:
                end = html.find(self._quote, at)
                if end < 0:
                    return
                self._quote, at = None, end + 1
            elif self._tag is not None:
                at = self._in_tag(html, at)
            else:
                found = _TAG.search(html, at)
                if found is None:
                    return
                self._tag, at = found[1] + found[2].lower(), found.end()

    def _in_tag(self, html: str, at: int) -> int:
        character = html[at]
        if character == ">":
            closes, name = self._tag == f"/{self._element}", self._tag
            if closes:
                self._element = None
            elif name in _TEXT_ONLY | _RAW | {"textarea"}:
                self._element = name
            self._tag = None
        elif character in "\"'":
            self._quote = character
        elif (attribute := _NAME.match(html, at)) is not None:
            self._attribute = attribute[0].lower()
            return attribute.end()
        return at + 1


class Isolation(Extension):
    """A Jinja extension that filters each expression by its position."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters.update(_FILTERS)

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Add the filters to the tokens of a template."""
        position = _Position()
        chosen: str | None = None
        before: list[str] = []
        for token in stream:
            if token.type == "data":
                position.advance(token.value)
            elif token.type == "variable_begin":
                try:
                    chosen = position.filter()
                except ValueError as error:
                    raise TemplateSyntaxError(str(error), token.lineno, stream.name, stream.filename) from error
            before = [*before[-2:], token.value if token.type == "name" else token.type]
            if before == ["block_begin", "block", "title"]:  # base.html shows it in the title
                position.enter("title")
            elif before[-2:] == ["block_begin", "endblock"]:
                position.enter(None)
            if chosen is not None and token.type == "variable_end":
                yield Token(token.lineno, "rparen", ")")
                yield Token(token.lineno, "pipe", "|")
                yield Token(token.lineno, "name", chosen)
                chosen = None
            yield token
            if chosen is not None and token.type == "variable_begin":
                yield Token(token.lineno, "lparen", "(")

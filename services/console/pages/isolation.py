"""Untrusted text in pages: isolated where it is shown, so that it can't reorder or hide what stands beside it.

Autoescaping keeps a value from being markup. It does not keep a name in Hebrew, or one with a direction override, from
changing the order in which a reader sees the words around it. So each expression of a template passes one more filter,
chosen by where it stands; templates need not think of it:

================================ ===================================================================================
in the content of an element     invisible characters as escapes, and `<bdi>` around a value that isn't plain ASCII
in an attribute that is shown    the same with Unicode's isolates, for example ``title`` or ``data-confirm``
in a title or an option          likewise: they take no elements
in a text area                   invisible characters as JSON's escapes, which mean the same where it is sent back
in any other attribute           nothing: it is an address or a value that has to come back as it is
================================ ===================================================================================
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

__all__ = ["SHOWN_ATTRIBUTES", "Isolation"]

SHOWN_ATTRIBUTES: Final = frozenset({"alt", "aria-label", "data-confirm", "label", "placeholder", "title"})
"""Attributes whose values people read."""

_KEPT: Final = "\n\t"
_TAG: Final = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)")
_NAME: Final = re.compile(r"[^\s=/>\"']+")
_NO_ELEMENTS: Final = frozenset({"title", "option"})
_NO_TEXT: Final = frozenset({"script", "style"})


def _isolated(value: Any) -> Any:
    if hasattr(value, "__html__"):  # a macro's, or marked as safe: what is in it has been isolated there
        return value
    shown = escape_invisible(str(value), keep=_KEPT)
    return shown if shown.isascii() else Markup("<bdi>{}</bdi>").format(shown)


def _isolated_text(value: Any) -> str:
    shown = escape_invisible(str(value), keep=_KEPT)
    return shown if shown.isascii() else f"\u2068{shown}\u2069"


def _editable(value: Any) -> str:
    return escape_json(str(value), keep="\r\n\t")


_FILTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "isolated": _isolated,
    "isolated_text": _isolated_text,
    "editable": _editable,
}


class _Place:
    """Where in the HTML of a template an expression stands."""

    def __init__(self) -> None:
        self._element: str | None = None  # whose content holds text alone
        self._tag: str | None = None
        self._attribute = ""
        self._quote: str | None = None

    def filter(self) -> str | None:
        """Return the filter for an expression that stands here.

        Raises:
            ValueError: No expression may stand here.
        """
        if self._quote is not None:
            return "isolated_text" if self._attribute in SHOWN_ATTRIBUTES else None
        if self._tag is not None:
            raise ValueError("an expression in a tag has to stand in a quoted attribute")
        if self._element in _NO_TEXT:
            raise ValueError(f"no expression may stand in <{self._element}>")
        if self._element == "textarea":
            return "editable"
        return "isolated_text" if self._element in _NO_ELEMENTS else "isolated"

    def enter(self, element: str | None) -> None:
        """Go on inside an element, or outside of those that hold text alone."""
        self._element = element

    def go_on(self, html: str) -> None:
        """Read a part of the template that is HTML."""
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
            elif name in _NO_ELEMENTS | _NO_TEXT | {"textarea"}:
                self._element = name
            self._tag = None
        elif character in "\"'":
            self._quote = character
        elif (name_found := _NAME.match(html, at)) is not None:
            self._attribute = name_found[0].lower()
            return name_found.end()
        return at + 1


class Isolation(Extension):
    """A Jinja extension that lets each expression pass the filter for its place."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters.update(_FILTERS)

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Add the filters to a template's tokens."""
        place = _Place()
        chosen: str | None = None
        before: list[str] = []
        for token in stream:
            if token.type == "data":
                place.go_on(token.value)
            elif token.type == "variable_begin":
                try:
                    chosen = place.filter()
                except ValueError as error:
                    raise TemplateSyntaxError(str(error), token.lineno, stream.name, stream.filename) from error
            before = [*before[-2:], token.value if token.type == "name" else token.type]
            if before == ["block_begin", "block", "title"]:  # the base has it in the page's title
                place.enter("title")
            elif before[-2:] == ["block_begin", "endblock"]:
                place.enter(None)
            if chosen is not None and token.type == "variable_end":
                yield Token(token.lineno, "rparen", ")")
                yield Token(token.lineno, "pipe", "|")
                yield Token(token.lineno, "name", chosen)
                chosen = None
            yield token
            if chosen is not None and token.type == "variable_begin":
                yield Token(token.lineno, "lparen", "(")

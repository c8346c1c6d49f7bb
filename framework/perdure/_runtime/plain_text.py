r"""Protection against invisible characters in untrusted text.

Names, reasons and error messages may contain escape sequences that move the cursor, overrides that reverse the reading
direction, and zero-width characters that make two names look alike. `escape_invisible` writes them as escapes such as
``\x1b``, for terminals and logs. `check_visible` rejects them in input. `message_text` makes a bounded message for the
engine of any object, also of one whose ``repr`` fails.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

if TYPE_CHECKING:
    from pydantic import AfterValidator, StringConstraints

INVISIBLE_CHARACTER: Final = "invisible_character"
"""Type of pydantic's error for a text that `check_visible` rejects."""

# Characters without a glyph that Unicode counts as letters or marks (Default_Ignorable_Code_Point).
_IGNORABLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)

# Persian and Indic scripts and many emoji need joiners and variation selectors.
_OF_PROSE: Final = "\u200c\u200d\ufe0e\ufe0f"

MAX_DISPLAY_NAME_LENGTH: Final = 1_000
"""Longest name of a run or step, in characters."""

_MESSAGE_LENGTH: Final = 8_000
_GAP_LENGTH: Final = 50

# Control characters except tab and line feed, and surrogates, which UTF-8 cannot encode.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_NOT_ASCII: Final = re.compile(r"[^ -~]")
_READS_AS_ESCAPE: Final = r"x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}"
# A backslash before an escape, or before text that looks like one, is doubled, so that the output is unambiguous.
_TO_ESCAPE: Final = re.compile(rf"(?P<before>\\*)(?P<character>[^ -~])|(?P<plain>\\+)(?={_READS_AS_ESCAPE})")


def is_visible(character: str) -> bool:
    """Return whether a character is visible, as a glyph or as a space."""
    if character.isprintable():
        return _IGNORABLE.match(character) is None
    return unicodedata.category(character) == "Zs"


def escape_invisible(text: str, *, keep: str = "") -> str:
    r"""Return a text with invisible characters as ``\xhh``, ``\uhhhh`` or ``\Uhhhhhhhh``, except those in ``keep``.

    Different texts have different results.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return _TO_ESCAPE.sub(lambda found: _escaped(found, keep), text)


def _escaped(found: re.Match[str], keep: str) -> str:
    if (plain := found["plain"]) is not None:
        return 2 * str(plain)
    character = found["character"]
    if character in keep or is_visible(character):
        return found[0]
    return 2 * str(found["before"]) + _escape(character)


def _escape(character: str) -> str:
    code = ord(character)
    letter, digits = ("x", 2) if code < 0x100 else ("u", 4) if code < 0x10000 else ("U", 8)
    return f"\\{letter}{code:0{digits}x}"


def escape_control(text: str) -> str:
    r"""Return a text with surrogates and control characters as ``\xhh`` or ``\uhhhh``, except tabs and line feeds.

    UTF-8 can encode the result. Escaping it again, in the next service, changes nothing.
    """
    return _CONTROL.sub(lambda found: _escape(found[0]), text)


def text_of(value: object, convert: Callable[[object], str] = str) -> str:
    """Return ``str`` or ``repr`` of an object, or a substitute that names the error of a failing method."""
    try:
        if convert is str and isinstance(value, str):
            return str.__str__(value)  # a subclass may override the method
        return str.__str__(convert(value))
    except BaseException as error:  # noqa: BLE001 - the method of an untrusted class may raise anything
        return f"<{type(value).__name__} whose {convert.__name__} raises {type(error).__name__}>"


def shorten(text: str, limit: int) -> str:
    """Return a text of at most ``limit`` characters: of a longer one, its beginning and its end."""
    if len(text) <= limit:
        return text
    half = (limit - _GAP_LENGTH) // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters omitted ...] {text[-half:]}"


def message_text(value: object, limit: int = _MESSAGE_LENGTH) -> str:
    """Return the text of any object as a message for the engine: of bounded length, encodable, and escaped."""
    if type(value) is str and len(value) <= limit and value.isprintable():
        return value
    return shorten(escape_control(shorten(text_of(value), limit)), limit)


def escape_rest(text: str, *, keep: str = "") -> str:
    """Return a text that is escaped in part, such as a ``repr``, with its remaining invisible characters escaped."""
    return _NOT_ASCII.sub(
        lambda found: found[0] if found[0] in keep or is_visible(found[0]) else _escape(found[0]), text
    )


def escape_json(text: str, *, keep: str = "\n") -> str:
    """Return equivalent JSON with visible characters only. ``keep`` must contain the white space between its tokens."""
    return _NOT_ASCII.sub(
        lambda found: found[0] if found[0] in keep or is_visible(found[0]) else json.dumps(found[0])[1:-1], text
    )


def display_name(name: str) -> str:
    """Return a name that identifies nothing, such as that of a run, as a message for the engine of bounded length."""
    return message_text(name, MAX_DISPLAY_NAME_LENGTH)


def check_visible(text: str, *, allowed: str = "") -> str:
    """Return a text without invisible characters, except those in ``allowed``.

    Raises:
        PydanticCustomError: The text contains another invisible character. A `ValueError` that names it.
    """
    for found in _NOT_ASCII.finditer(text):
        if found[0] not in allowed and not is_visible(found[0]):
            from pydantic_core import PydanticCustomError  # noqa: PLC0415 - a help text needs no pydantic

            name = unicodedata.name(found[0], "")
            raise PydanticCustomError(
                INVISIBLE_CHARACTER,
                "must not contain the invisible character {character} at position {position}: remove it",
                {
                    "character": f"U+{ord(found[0]):04X}" + (f" ({name})" if name else ""),
                    "position": found.start() + 1,
                },
            )
    return text


def _checked_prose(text: str) -> str:
    return check_visible(text, allowed=_OF_PROSE)


if TYPE_CHECKING:
    Reason: TypeAlias = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_checked_prose)]


def __getattr__(name: str) -> Any:
    """Return ``Reason``, the type of an action's reason: one line of up to 2000 visible characters."""
    if name != "Reason":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from pydantic import AfterValidator, StringConstraints  # noqa: PLC0415 - a help text needs no pydantic

    globals()["Reason"] = reason = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_checked_prose)]
    return reason

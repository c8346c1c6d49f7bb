"""Business attributes of sagas: state entries whose names SQL can filter.

The entry ``attribute/{name}/{value}`` has the value as its content. With encryption, the name has a keyed hash of the
value instead, and the content is sealed like all state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import restate

from perdure._runtime.places import ValueCodec
from perdure._runtime.sealing import codec_of
from perdure._runtime.serdes import serde_for
from perdure.errors import InvalidInput

ATTRIBUTE_PREFIX: Final = "attribute/"
MAX_ATTRIBUTES: Final = 16
MAX_VALUE_LENGTH: Final = 128

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_value_serde = serde_for(str)


class Attributes:
    """The attributes of one execution.

    Args:
        ctx: The context of the workflow, whose state stores them.
    """

    def __init__(self, ctx: restate.ObjectContext) -> None:
        self._ctx = ctx
        self._entries: dict[str, str] = {}

    def set(self, values: Mapping[str, Any]) -> None:
        """Set attributes; an entry that has changed replaces the earlier one.

        Raises:
            InvalidInput: A name or value is invalid, or there are too many attributes; none was set.
        """
        texts = {name: attribute_value(name, value) for name, value in values.items()}
        if len({*self._entries, *texts}) > MAX_ATTRIBUTES:
            raise InvalidInput(f"invalid input: attributes: a saga has at most {MAX_ATTRIBUTES}")
        codec = codec_of(self._ctx)
        for name, text in texts.items():
            entry = attribute_keys(name, text, codec)[0]
            known = self._entries.get(name)
            if known == entry:
                continue
            if known is not None:
                self._ctx.clear(known)
            self._ctx.set(entry, text, serde=_value_serde)
            self._entries[name] = entry


def attribute_value(name: str, value: object) -> str:
    """Return the text of an attribute's value.

    Raises:
        InvalidInput: The name is not ``[a-z][a-z0-9_]*`` of at most 32 characters, or the value is neither an integer
            nor a text of 1 to 128 printable characters.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidInput(
            f"invalid input: attribute {name[:40]!r}: a name has at most 32 characters a-z, 0-9 and _, and begins with "
            "a letter",
            metadata={"field": "attributes"},
        )
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_VALUE_LENGTH or not text.isprintable():
        raise InvalidInput(
            f"invalid input: attribute '{name}': a value is an integer, or a text of 1 to {MAX_VALUE_LENGTH} printable "
            "characters",
            metadata={"field": f"attributes.{name}"},
        )
    return text


def attribute_keys(name: str, value: str, codec: ValueCodec | None) -> list[str]:
    """Return the names of the state entries that an attribute can have: one per encryption key, the current one first.

    Args:
        name: The attribute.
        value: Its value.
        codec: Encryption of the journal; None if it is not encrypted.
    """
    tokens = [value] if codec is None else codec.keyed_hashes(f"{name}={value}")
    return [f"{ATTRIBUTE_PREFIX}{name}/{token}" for token in tokens]


def attribute_name(entry: str) -> str:
    """Return the attribute of a state entry."""
    return entry.removeprefix(ATTRIBUTE_PREFIX).partition("/")[0]

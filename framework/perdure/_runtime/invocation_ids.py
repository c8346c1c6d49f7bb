"""Ids that the engine gives, checked before they are handed back to it.

They go round through mails, forms and other systems. What the engine can't read as an id it takes for a failure of the
handler, and repeats that for ever; so it is refused here, once and for good.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from perdure.errors import InvalidInput

_SIGNAL_PREFIX: Final = "sign_1"  # the engine takes "prom_1", too: the results of calls
_INVOCATION_BYTES: Final = 24
_SIGNAL_BYTES: Final = 28  # an invocation's id, and which of its signals
_FIRST_AWAKEABLE: Final = 17  # the signals before are the engine's own; 1 cancels the invocation
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_INVOCATION: Final = re.compile(r"inv_1[0-9A-Za-z]{33}")


def check_signal_id(id_: str) -> str:
    """Return the id of an external signal.

    Any other ID is refused: the engine also takes IDs that cancel an invocation, or that stand for the
    result of a call that it waits for.

    Args:
        id_: What `ExternalSignal.id` was.

    Raises:
        InvalidInput: No signal has such an id.
    """
    if not (id_.startswith(_SIGNAL_PREFIX) and _is_awakeable(id_.removeprefix(_SIGNAL_PREFIX))):
        raise InvalidInput(
            f"{id_[:100]!r} is no id of an external signal; pass on what `wait_for_external_signal(...).id` was, "
            "character for character",
            metadata={"field": "id"},
        )
    return id_


def _is_awakeable(text: str) -> bool:
    try:
        content = base64.b64decode(f"{text}{'=' * (-len(text) % 4)}", altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return False
    # The last character may hold more bits than there are; the engine wants those to be zero.
    if len(content) != _SIGNAL_BYTES or base64.urlsafe_b64encode(content).decode().rstrip("=") != text:
        return False
    return int.from_bytes(content[_INVOCATION_BYTES:], "big") >= _FIRST_AWAKEABLE


def signal_id(invocation_id: str, number: int = _FIRST_AWAKEABLE) -> str:
    """Return the id of an invocation's signal, as anybody can who knows the invocation's id.

    Args:
        invocation_id: The invocation.
        number: Which signal: 17 is the first awakeable, 1 cancels the invocation.

    Raises:
        InvalidInput: No invocation has such an id.
    """
    return f"{_SIGNAL_PREFIX}{_encoded(invocation_id, number)}"


def pending_id(invocation_id: str, number: int) -> str:
    """Return the id under which engine 1.7 takes the result of a call or promise that an invocation waits for.

    It is for tests of that weakness. The same id of a sleep or a run stops the engine.

    Args:
        invocation_id: The invocation.
        number: Number of the awaited result in the invocation's journal.

    Raises:
        InvalidInput: No invocation has such an id.
    """
    return f"prom_1{_encoded(invocation_id, number)}"


def _encoded(invocation_id: str, number: int) -> str:
    digits = check_invocation_id(invocation_id).removeprefix("inv_1")
    parts = b"".join(
        _from_base62(digits[part]).to_bytes(size, "little") for part, size in ((slice(11), 8), (slice(11, None), 16))
    )
    return base64.urlsafe_b64encode(parts + number.to_bytes(4, "big")).decode().rstrip("=")


def _from_base62(text: str) -> int:
    value = 0
    for digit in text:
        value = value * len(_DIGITS) + _DIGITS.index(digit)
    return value


def check_invocation_id(id_: str) -> str:
    """Return the id of an invocation.

    Args:
        id_: What a send or a submit returned.

    Raises:
        InvalidInput: No invocation has such an id.
    """
    if not _INVOCATION.fullmatch(id_):
        raise InvalidInput(
            f"{id_[:100]!r} is no id of an invocation; pass on what the send or the submit returned",
            metadata={"field": "invocation_id"},
        )
    return id_

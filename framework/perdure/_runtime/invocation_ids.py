"""Validation and construction of the engine's IDs of invocations and signals.

IDs travel through mails, forms and other systems. The engine treats a malformed ID as a failure of the handler and
retries forever, so Perdure rejects it first.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from perdure.errors import InvalidInput

_SIGNAL_PREFIX: Final = "sign_1"  # the engine also accepts "prom_1": the results of calls
_INVOCATION_BYTES: Final = 24
_SIGNAL_BYTES: Final = 28  # the invocation's ID and the number of the signal
_FIRST_AWAKEABLE: Final = 17  # lower numbers are the engine's own; signal 1 cancels the invocation
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_INVOCATION: Final = re.compile(r"inv_1[0-9A-Za-z]{33}")


def check_signal_id(id_: str) -> str:
    """Return the ID of an external signal; raise InvalidInput for another ID.

    The engine also accepts IDs that cancel an invocation, or that complete a call for which it waits.
    """
    if not (id_.startswith(_SIGNAL_PREFIX) and _is_awakeable(id_.removeprefix(_SIGNAL_PREFIX))):
        raise InvalidInput(
            f"{id_[:100]!r} is not the ID of an external signal; pass the unchanged `id` of "
            "`wait_for_external_signal(...)`",
            metadata={"field": "id"},
        )
    return id_


def _is_awakeable(text: str) -> bool:
    try:
        content = base64.b64decode(f"{text}{'=' * (-len(text) % 4)}", altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return False
    # The unused bits of the last character must be zero.
    if len(content) != _SIGNAL_BYTES or base64.urlsafe_b64encode(content).decode().rstrip("=") != text:
        return False
    return int.from_bytes(content[_INVOCATION_BYTES:], "big") >= _FIRST_AWAKEABLE


def signal_id(invocation_id: str, number: int = _FIRST_AWAKEABLE) -> str:
    """Return the ID of an invocation's signal: 17 is the first awakeable, 1 cancels the invocation."""
    return f"{_SIGNAL_PREFIX}{_encoded(invocation_id, number)}"


def pending_id(invocation_id: str, number: int) -> str:
    """Return the ID with which callers of engine 1.7 can complete a call or promise, for tests of that weakness.

    The number is the index of the awaited result in the journal. The same ID of a sleep or a run stops the engine.
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
    """Return the ID of an invocation; raise InvalidInput for another ID."""
    if not _INVOCATION.fullmatch(id_):
        raise InvalidInput(
            f"{id_[:100]!r} is not the ID of an invocation; pass the ID that the send or submit returned",
            metadata={"field": "invocation_id"},
        )
    return id_

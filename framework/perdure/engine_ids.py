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
_INVOCATION: Final = re.compile(r"inv_1[0-9A-Za-z]{33}")


def check_signal_id(id_: str) -> str:
    """Return the id of an external signal.

    Completing anything else is an attack: the engine also takes ids that cancel an invocation, or that stand for the
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

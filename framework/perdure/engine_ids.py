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

_SIGNAL_PREFIXES: Final = ("sign_1", "prom_1")
_SIGNAL_BYTES: Final = 28  # an invocation's id, and which of its signals
_INVOCATION: Final = re.compile(r"inv_1[0-9A-Za-z]{33}")


def check_signal_id(id_: str) -> str:
    """Return the id of an external signal.

    Args:
        id_: What `ExternalSignal.id` was.

    Raises:
        InvalidInput: No signal has such an id.
    """
    if not (id_.startswith(_SIGNAL_PREFIXES) and _is_encoded(id_[6:])):
        raise InvalidInput(
            f"{id_[:100]!r} is no id of an external signal; pass on what `wait_for_external_signal(...).id` was, "
            "character for character",
            metadata={"field": "id"},
        )
    return id_


def _is_encoded(text: str) -> bool:
    try:
        content = base64.b64decode(f"{text}{'=' * (-len(text) % 4)}", altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return False
    # The last character may hold more bits than there are; the engine wants those to be zero.
    return len(content) == _SIGNAL_BYTES and base64.urlsafe_b64encode(content).decode().rstrip("=") == text


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

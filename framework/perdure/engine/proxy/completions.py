"""Refusal of requests that complete other results than awakeables.

``/restate/awakeables/`` of the ingress accepts further IDs (engine 1.7.12). A caller that knows an invocation ID can
derive IDs that complete its pending calls and promises, cancel it, or stop the partition.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from perdure._runtime.invocation_ids import check_signal_id
from perdure.errors import InvalidInput
from perdure.security.browsers import Refusal

_COMPLETIONS: Final = (b"awakeables", b"a")


def completion_refusal(path: bytes) -> Refusal | None:
    """Return the refusal of a request to the ingress with this path as sent, without query, or None."""
    parts = [part for part in path.split(b"/") if part]
    decoded = [unquote_to_bytes(part) for part in parts[:2]]
    if len(decoded) < 2 or decoded[0].lower() != b"restate" or decoded[1].lower() not in _COMPLETIONS:
        return None
    if parts[:2] == decoded and len(parts) > 2 and _is_awakeable(parts[2]):
        return None
    return Refusal(
        403,
        "not_an_awakeable",
        "only awakeables can be completed: send the exact ID of `wait_for_external_signal(...)`",
    )


def _is_awakeable(id_: bytes) -> bool:
    try:
        check_signal_id(id_.decode("latin-1"))
    except InvalidInput:
        return False
    return True

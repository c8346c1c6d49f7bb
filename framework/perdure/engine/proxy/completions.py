"""Refuses completions of anything but an awakeable.

The ingress takes more ids under ``/restate/awakeables/`` than those of awakeables (engine 1.7.12). A caller that knows
an invocation's id can derive ids that complete its pending calls and promises, cancel it, or stop the partition.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from perdure._runtime.invocation_ids import check_signal_id
from perdure.errors import InvalidInput
from perdure.security.browsers import Refusal

__all__ = ["completion_refusal"]

_COMPLETIONS: Final = (b"awakeables", b"a")


def completion_refusal(path: bytes) -> Refusal | None:
    """Return why a request to the ingress is refused, None when it completes an awakeable or nothing.

    Args:
        path: The path as it was sent, without the query.
    """
    sent = [part for part in path.split(b"/") if part]
    decoded = [unquote_to_bytes(part) for part in sent[:2]]
    if len(decoded) < 2 or decoded[0].lower() != b"restate" or decoded[1].lower() not in _COMPLETIONS:
        return None
    if sent[:2] == decoded and len(sent) > 2 and _is_awakeable(sent[2]):
        return None
    return Refusal(
        403,
        "not_an_awakeable",
        "only awakeables can be completed: send the id of `wait_for_external_signal(...)` character for character",
    )


def _is_awakeable(id_: bytes) -> bool:
    try:
        check_signal_id(id_.decode("latin-1"))
    except InvalidInput:
        return False
    return True

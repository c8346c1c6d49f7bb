"""Idempotency keys: joined so that no two different lists of parts give the same key, and checked."""

from __future__ import annotations

import os
import re

from perdure.errors import InvalidInput
from perdure.guardrails import GuardrailPolicy, guardrail, policy_in

_TIMESTAMP = re.compile(r"\d{10,}")
# One random UUID in sixty has ten digits in a row.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TIMESTAMP_TEXT = "idempotency key may contain non-deterministic timestamp: {}"
MAX_KEY_LENGTH = 512
VALIDATION_VARIABLE = "PERDURE_IDEMPOTENCY_VALIDATION"


def join_key(*parts: str) -> str:
    r"""Join parts to one key, reversibly: ``:`` and ``\`` inside a part are escaped with ``\``.

    ``join_key("a", "b")`` is ``a:b`` and ``join_key("a:b")`` is ``a\:b``. The Go original joined paths, so that
    ``a/b`` and ``a``, ``b`` gave the same key, and ``..`` removed the part before it.

    Args:
        parts: At least one part; empty parts are allowed and count.

    Returns:
        The key.

    Raises:
        InvalidInput: There is no part, or the key is longer than 512 characters.
    """
    if not parts:
        raise InvalidInput("an idempotency key needs at least one part")
    key = ":".join(part.replace("\\", "\\\\").replace(":", "\\:") for part in parts)
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidInput(f"idempotency key is {len(key)} characters long; at most {MAX_KEY_LENGTH} are allowed")
    return key


def validate_idempotency_key(key: str) -> str:
    """Check that a key is there and bears no timestamp.

    Args:
        key: The key.

    Returns:
        The key itself.

    Raises:
        InvalidInput: It is empty, or has ten or more digits in a row outside a UUID, as a time in seconds or
            milliseconds has: such a key differs at every attempt and so protects from nothing.
    """
    _not_empty(key)
    if _has_timestamp(key):
        raise InvalidInput(_TIMESTAMP_TEXT.format(key), metadata={"field": "idempotency_key"})
    return key


def check_idempotency_key(key: str, policy: GuardrailPolicy | None = None) -> str:
    """Check a key as the clients do: ten digits may be a time, or an order's number, so the policy decides.

    Args:
        key: The key.
        policy: The policy for this key; else that of the environment variable ``PERDURE_IDEMPOTENCY_VALIDATION``, and
            without it the one for all guardrails.

    Returns:
        The key itself.

    Raises:
        InvalidInput: It is empty.
        GuardrailViolation: It may contain a timestamp, and the policy is strict.
    """
    _not_empty(key)
    if _has_timestamp(key):
        override = policy or policy_in(VALIDATION_VARIABLE, os.environ)
        guardrail("TimestampInIdempotencyKey", _TIMESTAMP_TEXT.format(key), override=override)
    return key


def _not_empty(key: str) -> None:
    if not key:
        raise InvalidInput("idempotency key cannot be empty", metadata={"field": "idempotency_key"})


def _has_timestamp(key: str) -> bool:
    return _TIMESTAMP.search(_UUID.sub(" ", key)) is not None

"""Idempotency keys: joined so that no two different lists of parts give the same key, and checked."""

from __future__ import annotations

import re

from perdure.errors import InvalidInput

_TIMESTAMP = re.compile(r"\d{10,}")
MAX_KEY_LENGTH = 512


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
        InvalidInput: It is empty, or has ten or more digits in a row, as a time in seconds or milliseconds has: such a
            key differs at every attempt and so protects from nothing.
    """
    if not key:
        raise InvalidInput("idempotency key cannot be empty", metadata={"field": "idempotency_key"})
    if _TIMESTAMP.search(key):
        raise InvalidInput(
            f"idempotency key may contain non-deterministic timestamp: {key}", metadata={"field": "idempotency_key"}
        )
    return key

"""Idempotency keys: unambiguous joining of parts, and validation."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Final
from uuid import NAMESPACE_OID, uuid5

from perdure._runtime.engine_texts import check_name
from perdure.errors import InvalidInput
from perdure.guardrails import GuardrailPolicy, guardrail, policy_in

_TIMESTAMP = re.compile(r"\d{10,}")
# One random UUID in sixty has ten digits in a row.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TIMESTAMP_TEXT = "idempotency key may contain non-deterministic timestamp: {}"
MAX_KEY_LENGTH = 512
_MAX_PLAIN_CHILD_KEY: Final = 64
_KEPT_OF_PARENT: Final = 24
_DIGEST_LENGTH: Final = 24
_CHILD_DIGEST: Final = re.compile(rf"~[0-9a-f]{{{_DIGEST_LENGTH}}}\Z")

KEY_IS_USED_ONCE: Final = "a request uses up its key, even if the handler rejects it"

VALIDATION_VARIABLE = "PERDURE_IDEMPOTENCY_VALIDATION"


def join_key(*parts: str) -> str:
    r"""Join parts to one key. ``:`` and ``\`` inside a part are escaped, so different parts never give the same key.

    ``join_key("a", "b")`` is ``a:b`` and ``join_key("a:b")`` is ``a\:b``.

    Args:
        parts: At least one part; parts may be empty.

    Returns:
        The key.

    Raises:
        InvalidInput: There are no parts, or the key is longer than 512 characters.
    """
    if not parts:
        raise InvalidInput("an idempotency key needs at least one part")
    key = ":".join(part.replace("\\", "\\\\").replace(":", "\\:") for part in parts)
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidInput(f"idempotency key is {len(key)} characters long; at most {MAX_KEY_LENGTH} are allowed")
    return key


def child_key(parent: str, name: str) -> str:
    """Return the key of a child saga: the parent's key and the step's name, or a digest of both when that is long.

    The digest keeps the keys of deeply nested sagas short. Different parents or names give different keys.

    Args:
        parent: The parent's key.
        name: The name of the step that runs the child.
    """
    if len(parent) + len(name) < _MAX_PLAIN_CHILD_KEY:
        key = join_key(parent, name)
        if len(key) <= _MAX_PLAIN_CHILD_KEY and key.isprintable() and not _CHILD_DIGEST.search(key):
            return key
    digest = hashlib.sha256(json.dumps([parent, name]).encode()).hexdigest()[:_DIGEST_LENGTH]
    start = "".join(character for character in parent[:_KEPT_OF_PARENT] if character.isprintable())
    return f"{start}~{digest}"


def digest_key(*parts: str) -> str:
    """Return a key for names that users choose: a UUID, because a name may be long or look like a timestamp.

    Args:
        parts: The names. Different parts give different keys.
    """
    return str(uuid5(NAMESPACE_OID, json.dumps(parts)))


def validate_idempotency_key(key: str) -> str:
    """Return a key that is not empty and contains no timestamp.

    Args:
        key: The key.

    Raises:
        InvalidInput: The key is empty, or has ten or more digits in a row outside a UUID, as a timestamp has. A key
            with a timestamp differs between attempts.
    """
    _not_empty(key)
    if _has_timestamp(key):
        raise InvalidInput(_TIMESTAMP_TEXT.format(key), metadata={"field": "idempotency_key"})
    return key


def check_idempotency_key(key: str, policy: GuardrailPolicy | None = None) -> str:
    """Return a key that is not empty; one that may contain a timestamp violates a guardrail.

    Ten digits may also be the number of an order, so the policy decides.

    Args:
        key: The key.
        policy: The policy; by default that of ``PERDURE_IDEMPOTENCY_VALIDATION``, else the guardrails' policy.

    Raises:
        InvalidInput: The key is empty, or is no text that the engine can store.
        GuardrailViolation: The key may contain a timestamp, and the policy is strict.
    """
    _not_empty(key)
    if _has_timestamp(key):
        override = policy or policy_in(VALIDATION_VARIABLE, os.environ)
        guardrail("TimestampInIdempotencyKey", _TIMESTAMP_TEXT.format(key), override=override)
    return key


def _not_empty(key: str) -> None:
    if not check_name("idempotency key", key):
        raise InvalidInput("idempotency key cannot be empty", metadata={"field": "idempotency_key"})


def _has_timestamp(key: str) -> bool:
    return _TIMESTAMP.search(_UUID.sub(" ", key)) is not None

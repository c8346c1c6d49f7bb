"""Encodings of keys, signatures and signed content, with one valid spelling per value.

Decoders refuse other spellings: otherwise one signature could pass for two.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, Final

from pydantic import JsonValue

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUE: Final = {character: value for value, character in enumerate(_BASE58)}
_MAX_BASE58: Final = 128


def base58_encode(data: bytes) -> str:
    """Return bytes in base 58 with Bitcoin's alphabet, as in Restate's public keys."""
    number = int.from_bytes(data, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def base58_decode(text: str) -> bytes:
    """Return the bytes of a base 58 text of at most 128 characters.

    Raises:
        ValueError: The text is too long or contains a character outside the alphabet.
    """
    if len(text) > _MAX_BASE58:
        raise ValueError(f"{len(text)} characters exceed the limit of {_MAX_BASE58}")
    number = 0
    for character in text:
        if character not in _BASE58_VALUE:
            raise ValueError(f"{character!r} is not a base 58 character")
        number = number * 58 + _BASE58_VALUE[character]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def base64url_encode(data: bytes) -> str:
    """Return bytes in base64url without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def base64url_decode(text: str) -> bytes:
    """Return the bytes of a text that `base64url_encode` wrote.

    Raises:
        ValueError: The text is spelled differently: padding, white space, other characters, or unused bits.
    """
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError("not base64url") from error
    if base64url_encode(data) != text:
        raise ValueError("not canonical base64url")
    return data


def canonical_json(value: Any) -> bytes:
    """Return a JSON value as bytes with sorted keys, no white space and UTF-8. Equal values give equal bytes.

    It accepts everything that Python reads from JSON, including NaN and lone surrogates.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def json_digest(value: JsonValue) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()

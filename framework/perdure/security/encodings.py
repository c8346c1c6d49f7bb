"""How keys, signatures and what is signed are written: each value in one way only.

A reader that takes several spellings of a signature lets one act or link pass for two, so what isn't spelled as the
writer here spells it is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, Final

from pydantic import JsonValue

__all__ = ["base58_decode", "base58_encode", "base64url_decode", "base64url_encode", "canonical_json", "payload_digest"]

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUE: Final = {character: value for value, character in enumerate(_BASE58)}
_LONGEST_BASE58: Final = 128


def base58_encode(data: bytes) -> str:
    """Return bytes in base 58, in Bitcoin's alphabet, as Restate writes public keys."""
    number = int.from_bytes(data, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def base58_decode(text: str) -> bytes:
    """Return the bytes of a text in base 58.

    Raises:
        ValueError: It holds other characters than the alphabet's, or more than 128.
    """
    if len(text) > _LONGEST_BASE58:
        raise ValueError(f"{len(text)} characters are too many")
    number = 0
    for character in text:
        if character not in _BASE58_VALUE:
            raise ValueError(f"{character!r} is no character of base 58")
        number = number * 58 + _BASE58_VALUE[character]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def base64url_encode(data: bytes) -> str:
    """Return bytes in base 64 for addresses, without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def base64url_decode(text: str) -> bytes:
    """Return the bytes of a text that `base64url_encode` wrote.

    Raises:
        ValueError: It is not spelled so: padding, white space, other characters, or bits that belong to no byte.
    """
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError("not base64url") from error
    if base64url_encode(data) != text:
        raise ValueError("not base64url as it is written here")
    return data


def canonical_json(value: Any) -> bytes:
    """Return a JSON value as bytes: sorted keys, no white space, UTF-8. Equal values give equal bytes.

    It never fails on what was read from JSON: also numbers that are none, and half characters, have a spelling.

    Args:
        value: What JSON can say.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def payload_digest(payload: JsonValue) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal.

    Args:
        payload: What is shown to people before they act, or what they ask for.
    """
    return hashlib.sha256(canonical_json(payload)).hexdigest()

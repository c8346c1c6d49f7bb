"""Restate's request identity: is a request to a service really by an engine that may call it?

restate-server signs with an Ed25519 key: ``x-restate-signature-scheme: v1``, and in ``x-restate-jwt-v1`` a token (JWT,
RFC 7519) for the path, good for about a minute around its making. The token binds neither body nor host, and serves any
number of requests to its path while it lasts: it tells who calls, and no more. (The scheme is Restate's, as read in its
open SDK core; the Go original had invented one, which every genuine request failed.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

from perdure.errors import IdentityError
from perdure.security.encodings import base64url_decode
from perdure.security.keys import BadSignature, PublicKey

__all__ = ["Headers", "IdentityVerifier", "normalised_path"]

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]
"""Header fields as ASGI has them: names in lower case, one entry for each line."""

SCHEME_HEADER: Final = b"x-restate-signature-scheme"
TOKEN_HEADER: Final = b"x-restate-jwt-v1"

# The token of a virtual object or workflow holds the key, which the ingress takes from a path of up to 64 KiB; written
# in JSON and base64 it may get nearly three times as long.
_LONGEST_TOKEN: Final = 256 * 1024
_KEPT_TOKEN: Final = 4096
_IAT_SKEW: Final = 60
_SEEN: Final = 512
_LONGEST_LIFE: Final = 120
"""Seconds from the beginning of a token to its end; restate-server makes them that long."""


class IdentityVerifier:
    """Checks requests against the public keys of the engines that may call.

    It decides as the SDK's own verifier does, and refuses a little more: a token without a known ``kid`` or without
    ``iat`` (restate-server sends both, and the key should be chosen by what is signed), one that was made more than a
    minute from now or lasts longer than two minutes, one with ``crit`` extensions (RFC 7515: who doesn't know them must
    refuse), one whose JSON has a field twice or is no UTF-8, and a request with one of the two headers twice: two
    readers might choose differently.

    Args:
        keys: The engines' keys; several while one takes over from another.
    """

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self._keys = {key.id: key for key in keys}
        self._seen: dict[str, tuple[PublicKey, dict[str, Any]]] = {}

    def verify(self, headers: Headers, path: str, *, now: float) -> PublicKey:
        """Check a request.

        Args:
            headers: Its headers.
            path: Its path, decoded, with or without what the service is mounted under.
            now: The moment, in seconds since 1970.

        Returns:
            The key that it is signed with.

        Raises:
            IdentityError: It isn't signed by a known engine, or not for this path, or not for now.
        """
        token = _token(headers)
        seen = self._seen.get(token)
        if seen is None:
            seen = self._read(token)
            # The engine makes the same token for all requests to a path within a second, and checking a signature is
            # most of the work. Only genuine tokens are kept, so nobody else can fill this.
            if len(self._seen) >= _SEEN:
                self._seen.clear()
            if len(token) <= _KEPT_TOKEN:
                self._seen[token] = seen
        key, claims = seen
        _check_claims(claims, normalised_path(path), math.floor(now))
        return key

    def _read(self, token: str) -> tuple[PublicKey, dict[str, Any]]:
        """Return who signed a token, and what it says."""
        head, claims, signed, signature = _parts(token)
        key = self._key(head)
        try:
            key.verify(signed, signature)
        except BadSignature:
            raise IdentityError("the token is not signed by the key that it names") from None
        return key, _json(claims, "claims")

    def _key(self, encoded: bytes) -> PublicKey:
        head = _json(encoded, "header")
        if head.get("alg") != "EdDSA":
            raise IdentityError("the token is not signed with EdDSA")
        if not isinstance(head.get("typ", ""), str):
            raise IdentityError("the token's header can't be read")
        if "crit" in head:
            raise IdentityError("the token has extensions that are not known here")
        kid = head.get("kid")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise IdentityError("the token is by an engine whose key is not known here")
        return key


def normalised_path(path: str) -> str:
    """Return the path that a token is for: without what the service is mounted under.

    Args:
        path: The request's path.

    Returns:
        ``/invoke/{service}/{handler}`` or ``/discover``; any other path as it is.
    """
    parts = path.rsplit("/", 3)
    if len(parts) == 4 and parts[1] == "invoke":
        return f"/invoke/{parts[2]}/{parts[3]}"
    if len(parts) > 1 and parts[-1] == "discover":
        return "/discover"
    return path


def _token(headers: Headers) -> str:
    schemes: list[bytes] = []
    tokens: list[bytes] = []
    for name, value in headers:
        lower = name.lower()
        if lower == SCHEME_HEADER:
            schemes.append(value)
        elif lower == TOKEN_HEADER:
            tokens.append(value)
    if not schemes:
        raise IdentityError("the request is not signed")
    if len(schemes) > 1 or len(tokens) > 1:
        raise IdentityError("the request is signed twice")
    if schemes[0] == b"unsigned":
        raise IdentityError("the request says that it is not signed: the engine has no key, or another one's setting")
    if schemes[0] != b"v1":
        raise IdentityError("the request is signed in a way that is not known here")
    if not tokens:
        raise IdentityError("the request has no token")
    if len(tokens[0]) > _LONGEST_TOKEN:
        raise IdentityError("the token is too long")
    try:
        return tokens[0].decode("ascii")
    except UnicodeDecodeError:
        raise IdentityError("the token is misspelled") from None


def _parts(token: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Return a token's header, claims, what is signed, and the signature."""
    parts = token.split(".")
    if len(parts) != 3:
        raise IdentityError("the token does not have three parts")
    try:
        head, claims, signature = (base64url_decode(part) for part in parts)
    except ValueError:
        raise IdentityError("the token is misspelled") from None
    return head, claims, token.rpartition(".")[0].encode("ascii"), signature


def _json(encoded: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(encoded.decode(), object_pairs_hook=_each_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise IdentityError(f"the token's {what} can't be read") from None
    if not isinstance(value, dict):
        raise IdentityError(f"the token's {what} can't be read")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _check_claims(claims: dict[str, Any], path: str, now: int) -> None:
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(each, str) for each in audiences) or path not in audiences:
        raise IdentityError("the token is for another path")
    end, begin, made = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
    if end - begin > _LONGEST_LIFE or end - made > _LONGEST_LIFE:
        raise IdentityError(f"the token lasts longer than {_LONGEST_LIFE} s, which no engine's does")
    if now > end:
        raise IdentityError("the token has expired, or this machine's clock is ahead of the engine's")
    if begin > now or made > now + _IAT_SKEW:
        raise IdentityError("the token is not valid yet: this machine's clock is behind the engine's")


def _seconds(claims: dict[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**64:
        raise IdentityError(f"the token's {name} is missing, or no moment")
    return math.floor(value + 0.5) if isinstance(value, float) else value

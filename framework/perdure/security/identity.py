"""Verification of Restate's request identity: the engine's signature on its requests to services.

restate-server sends ``x-restate-signature-scheme: v1`` and in ``x-restate-jwt-v1`` an Ed25519-signed JWT (RFC 7519) for
the path, valid for about a minute. The token binds neither body nor host, and can be reused for its path while it is
valid: it authenticates the engine only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from perdure.errors import IdentityError
from perdure.security.browsers import Headers, header_values
from perdure.security.encodings import base64url_decode
from perdure.security.keys import BadSignature, PublicKey

SCHEME_HEADER: Final = b"x-restate-signature-scheme"
TOKEN_HEADER: Final = b"x-restate-jwt-v1"

# The token contains the key of a virtual object or workflow, up to 64 KiB in the ingress path; JSON and base64 make it
# nearly three times as long.
_MAX_TOKEN_LENGTH: Final = 256 * 1024
_MAX_CACHED_LENGTH: Final = 4096
_MAX_CACHED: Final = 512
_IAT_SKEW: Final = 60
_MAX_LIFETIME: Final = 120
"""The lifetime of restate-server's tokens in seconds."""


class IdentityVerifier:
    """Verifies that requests are signed by one of the engines that may call.

    It is stricter than the SDK's verifier. It also refuses tokens without a known ``kid`` or without ``iat``, issued
    more than a minute in the future, valid for more than two minutes, with ``crit`` extensions (RFC 7515), or with
    duplicate JSON fields or invalid UTF-8, and requests that repeat one of the two headers.

    Args:
        keys: The engines' keys; several during a rotation.
    """

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self._keys = {key.id: key for key in keys}
        self._cache: dict[str, tuple[PublicKey, dict[str, Any]]] = {}

    def verify(self, headers: Headers, path: str, *, now: float) -> PublicKey:
        """Verify a request.

        Args:
            headers: The request's headers.
            path: The decoded path, with or without the service's mount point.
            now: The Unix time.

        Returns:
            The key that signed the request.

        Raises:
            IdentityError: The request has no valid signature of a known engine for this path and time.
        """
        token = _token(headers)
        verified = self._cache.get(token)
        if verified is None:
            verified = self._verify_token(token)
            # The engine reuses a token for all requests to a path within a second, and verification is most of the
            # cost. Only genuine tokens are cached, so callers without a key cannot fill the cache.
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            if len(token) <= _MAX_CACHED_LENGTH:
                self._cache[token] = verified
        key, claims = verified
        _check_claims(claims, normalised_path(path), math.floor(now))
        return key

    def _verify_token(self, token: str) -> tuple[PublicKey, dict[str, Any]]:
        """Return the key that signed a token, and its claims."""
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
            raise IdentityError("the token's header is malformed")
        if "crit" in head:
            raise IdentityError("the token has unknown critical extensions")
        kid = head.get("kid")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise IdentityError("the token names an unknown key: add the engine's key to the signing keys")
        return key


def normalised_path(path: str) -> str:
    """Return the path without the service's mount point, as in the token's audience.

    Returns:
        ``/invoke/{service}/{handler}`` or ``/discover``; other paths unchanged.
    """
    parts = path.rsplit("/", 3)
    if len(parts) == 4 and parts[1] == "invoke":
        return f"/invoke/{parts[2]}/{parts[3]}"
    if len(parts) > 1 and parts[-1] == "discover":
        return "/discover"
    return path


def _token(headers: Headers) -> str:
    schemes, tokens = header_values(headers, SCHEME_HEADER), header_values(headers, TOKEN_HEADER)
    if not schemes:
        raise IdentityError("the request is not signed")
    if len(schemes) > 1 or len(tokens) > 1:
        raise IdentityError("the request is signed twice")
    if schemes[0] == b"unsigned":
        raise IdentityError("the request is marked as unsigned: configure the engine's identity key")
    if schemes[0] != b"v1":
        raise IdentityError("the signature scheme is unknown")
    if not tokens:
        raise IdentityError("the request has no token")
    if len(tokens[0]) > _MAX_TOKEN_LENGTH:
        raise IdentityError("the token is too long")
    try:
        return tokens[0].decode("ascii")
    except UnicodeDecodeError:
        raise IdentityError("the token is malformed") from None


def _parts(token: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Return a token's header, claims, signed bytes and signature."""
    parts = token.split(".")
    if len(parts) != 3:
        raise IdentityError("the token does not have three parts")
    try:
        head, claims, signature = (base64url_decode(part) for part in parts)
    except ValueError:
        raise IdentityError("the token is malformed") from None
    return head, claims, token.rpartition(".")[0].encode("ascii"), signature


def _json(encoded: bytes, part: str) -> dict[str, Any]:
    try:
        value = json.loads(encoded.decode(), object_pairs_hook=_unique_fields, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise IdentityError(f"the token's {part} is malformed") from None
    if not isinstance(value, dict):
        raise IdentityError(f"the token's {part} is malformed")
    return value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("duplicate field")
    return fields


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _check_claims(claims: dict[str, Any], path: str, now: int) -> None:
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(item, str) for item in audiences) or path not in audiences:
        raise IdentityError("the token is for another path")
    expires_at, not_before, issued_at = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
    if expires_at - not_before > _MAX_LIFETIME or expires_at - issued_at > _MAX_LIFETIME:
        raise IdentityError(f"the token is valid for more than {_MAX_LIFETIME} s")
    if now > expires_at:
        raise IdentityError("the token has expired, or this machine's clock is ahead of the engine's")
    if not_before > now or issued_at > now + _IAT_SKEW:
        raise IdentityError("the token is not valid yet, or this machine's clock is behind the engine's")


def _seconds(claims: dict[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**64:
        raise IdentityError(f"the token's {name} is missing or not a time")
    return math.floor(value + 0.5) if isinstance(value, float) else value

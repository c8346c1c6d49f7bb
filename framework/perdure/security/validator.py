"""The rules that a request to a process must keep: HTTPS, origin, identity."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, Literal, Self

from perdure.errors import IdentityError
from perdure.security.config import Network, SecurityConfig, ValidationMode
from perdure.security.identity import IdentityVerifier

__all__ = ["RequestFacts", "RequestValidationResult", "SecurityRule", "SecurityValidator", "is_within"]

SecurityRule = Literal["https", "origin", "identity"]

_STATUS: Final[dict[SecurityRule, int]] = {"https": 403, "origin": 403, "identity": 401}


@dataclass(frozen=True, kw_only=True)
class RequestFacts:
    """What the rules look at.

    Args:
        path: The path, decoded.
        headers: The header fields, as ASGI has them.
        scheme: ``http`` or ``https``, as this process sees it.
        peer: Address of who has connected; None when it isn't known.
    """

    path: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    scheme: str = "http"
    peer: str | None = None

    @classmethod
    def from_scope(cls, scope: Mapping[str, Any]) -> Self:
        """Return the facts of an ASGI request."""
        client = scope.get("client")
        return cls(
            path=scope["path"],
            headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            scheme=scope.get("scheme") or "http",
            peer=client[0] if client else None,
        )

    def values(self, name: bytes) -> list[bytes]:
        """Return all values of a header.

        Args:
            name: Its name, in lower case.
        """
        return [value for each, value in self.headers if each.lower() == name]


@dataclass(frozen=True, kw_only=True)
class RequestValidationResult:
    """What the rules say.

    Args:
        valid: They are kept.
        rule: The one that is broken.
        error_message: What is wrong, for the log and the caller; it holds nothing that the caller sent.
        key_index: Which of the signing keys the request is signed with; -1 for none.
        request_origin: The page that the request comes from; empty when it's from none.
    """

    valid: bool
    rule: SecurityRule | None = None
    error_message: str = ""
    key_index: int = -1
    request_origin: str = ""

    @property
    def status(self) -> int:
        """The HTTP status: 401 when nobody knows who asks, 403 when it wouldn't help to know."""
        return 200 if self.rule is None else _STATUS[self.rule]


@dataclass
class SecurityValidator:
    """Checks requests against the rules of a configuration, in the order HTTPS, origin, identity.

    Args:
        config: The configuration.
    """

    config: SecurityConfig
    _verifier: IdentityVerifier = field(init=False, repr=False)
    _index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the keys once."""
        keys = self.config.keys
        self._verifier = IdentityVerifier(keys)
        self._index = {key.id: index for index, key in enumerate(keys)}

    def validate(self, request: RequestFacts, *, now: float | None = None) -> RequestValidationResult:
        """Check a request.

        Args:
            request: The request.
            now: The moment, in seconds since 1970; this machine's clock by default.

        Returns:
            Whether it keeps the rules; with the mode disabled it always does.
        """
        config = self.config
        origins = [value.decode("latin-1") for value in request.values(b"origin")]
        origin = ", ".join(origins)[:200]
        if config.validation_mode is ValidationMode.DISABLED:
            return RequestValidationResult(valid=True, request_origin=origin)
        if config.require_https and not self._is_https(request):
            return RequestValidationResult(
                valid=False,
                rule="https",
                error_message="HTTPS required but request received over HTTP",
                request_origin=origin,
            )
        if any(each.lower() not in config.allowed_origins for each in origins):
            return RequestValidationResult(
                valid=False, rule="origin", error_message="origin not allowed", request_origin=origin
            )
        index = -1
        if config.enable_request_validation:
            try:
                key = self._verifier.verify(request.headers, request.path, now=time.time() if now is None else now)
            except IdentityError as error:
                return RequestValidationResult(
                    valid=False, rule="identity", error_message=str(error), request_origin=origin
                )
            index = self._index[key.id]
        return RequestValidationResult(valid=True, key_index=index, request_origin=origin)

    def _is_https(self, request: RequestFacts) -> bool:
        if request.scheme == "https":
            return True
        if not is_within(request.peer, self.config.trusted_proxies):
            return False
        # Proxies in a row add to the list, and one of them may be reached without encryption: all of them must say so.
        said = [part.strip().lower() for value in request.values(b"x-forwarded-proto") for part in value.split(b",")]
        return bool(said) and all(each == b"https" for each in said)


def is_within(peer: str | None, networks: tuple[Network, ...]) -> bool:
    """Tell if an address belongs to one of some networks.

    Args:
        peer: The address; None, or what is no address, belongs to none.
        networks: The networks.
    """
    try:
        address = ip_address(peer or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)

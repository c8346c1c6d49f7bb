"""Request validation and the ASGI middleware that refuses unauthorised requests."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, Literal, Self

from perdure._runtime.asgi import ASGIApp, Receive, Scope, Send, read_remaining
from perdure.errors import IdentityError
from perdure.observability.logging import get_logger
from perdure.observability.metrics import SECURITY_REFUSALS
from perdure.security.browsers import header_values, host_name, is_rebindable, is_sent_by_page
from perdure.security.config import LOOPBACK, Network, SecurityConfig, ValidationMode
from perdure.security.identity import IdentityVerifier

PUBLIC_PATHS: Final = frozenset({"/health", "/ready"})
"""Paths without access control, for supervisors that have no key. Their responses contain no business data."""

SecurityRule = Literal["https", "origin", "identity", "metrics"]

_STATUS: Final[dict[SecurityRule, int]] = {"https": 403, "origin": 403, "identity": 401, "metrics": 401}
_METRICS: Final = "/metrics"
_READ_TIMEOUT: Final = 5.0
_MAX_READ_BYTES: Final = 1024 * 1024

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class RequestInfo:
    """Properties of a request that the rules check.

    Args:
        path: The decoded path.
        headers: The ASGI headers.
        scheme: ``http`` or ``https``, as this process sees it.
        peer: The address of the connected client; None if unknown.
    """

    path: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    scheme: str = "http"
    peer: str | None = None

    @classmethod
    def from_scope(cls, scope: Mapping[str, Any]) -> Self:
        """Return the properties of an ASGI request."""
        client = scope.get("client")
        return cls(
            path=scope["path"],
            headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            scheme=scope.get("scheme") or "http",
            peer=client[0] if client else None,
        )


@dataclass(frozen=True, kw_only=True)
class RequestValidationResult:
    """Result of `SecurityValidator.validate`.

    Args:
        valid: Whether the request satisfies all rules.
        rule: The violated rule.
        error_message: The reason, without content of the request.
        key_index: The index of the signing key that the request is signed with; -1 for none.
        request_origin: The origin of the web page that sent the request; empty for none.
    """

    valid: bool
    rule: SecurityRule | None = None
    error_message: str = ""
    key_index: int = -1
    request_origin: str = ""

    @property
    def status(self) -> int:
        """The HTTP status: 401 for an unauthenticated caller, 403 for other violations."""
        return 200 if self.rule is None else _STATUS[self.rule]


@dataclass
class SecurityValidator:
    """Validates requests in the order HTTPS, origin, identity.

    Args:
        config: The security settings.
    """

    config: SecurityConfig
    _verifier: IdentityVerifier = field(init=False, repr=False)
    _index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys = self.config.keys
        self._verifier = IdentityVerifier(keys)
        self._index = {key.id: index for index, key in enumerate(keys)}

    def validate(self, request: RequestInfo, *, now: float | None = None) -> RequestValidationResult:
        """Validate a request. With the mode ``disabled``, every request is valid.

        Args:
            request: The request.
            now: The Unix time; that of the system clock by default.
        """
        config = self.config
        origins = [value.decode("latin-1") for value in header_values(request.headers, b"origin")]
        origin = ", ".join(origins)[:200]
        if config.validation_mode is ValidationMode.DISABLED:
            return RequestValidationResult(valid=True, request_origin=origin)

        def violation(rule: SecurityRule, message: str) -> RequestValidationResult:
            return RequestValidationResult(valid=False, rule=rule, error_message=message, request_origin=origin)

        if config.require_https and not self._is_https(request):
            return violation("https", "HTTPS required but request received over HTTP")
        if any(value.lower() not in config.allowed_origins for value in origins):
            return violation("origin", "origin not allowed")
        index = -1
        if config.enable_request_validation:
            try:
                key = self._verifier.verify(request.headers, request.path, now=time.time() if now is None else now)
            except IdentityError as error:
                return violation("identity", str(error))
            index = self._index[key.id]
        return RequestValidationResult(valid=True, key_index=index, request_origin=origin)

    def _is_https(self, request: RequestInfo) -> bool:
        if request.scheme == "https":
            return True
        if not is_within(request.peer, self.config.trusted_proxies):
            return False
        # Chained proxies append to the list, and one of them may be reached over HTTP: all entries must be https.
        forwarded = header_values(request.headers, b"x-forwarded-proto")
        schemes = [part.strip().lower() for value in forwarded for part in value.split(b",")]
        return bool(schemes) and all(scheme == b"https" for scheme in schemes)


def is_within(peer: str | None, networks: tuple[Network, ...]) -> bool:
    """Return whether an address is in one of the networks; False for None and malformed addresses."""
    try:
        address = ip_address(peer or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)


class SecurityMiddleware:
    """ASGI middleware that refuses requests that violate a rule, or in the permissive mode only reports them.

    `PUBLIC_PATHS` are open. ``/metrics`` is not for the engine, so it has a separate rule: a client in
    `SecurityConfig.metrics_networks`, or a bearer token.

    Args:
        app: The protected app.
        config: The security settings.

    Raises:
        ConfigurationError: The settings are refused, see `SecurityConfig.check_start`.
    """

    def __init__(self, app: ASGIApp, config: SecurityConfig) -> None:
        self._app = app
        self._config = config.check_start()
        self._validator = SecurityValidator(config)
        self._token = None if config.metrics_token is None else config.metrics_token.get_secret_value()
        if config.validation_mode is ValidationMode.DISABLED:
            log.warning("security is disabled: requests are not checked")
        elif not config.enable_request_validation:
            log.warning("request identity is not verified", mode=config.validation_mode.value)
        elif config.validation_mode is ValidationMode.PERMISSIVE:
            log.warning("security is permissive: requests that violate a rule are logged and served")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse a request."""
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(RequestInfo.from_scope(scope))
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(receive, send, *refusal)

    def _refusal(self, request: RequestInfo) -> tuple[int, str] | None:
        mode = self._config.validation_mode
        if mode is ValidationMode.DISABLED:
            return None
        result = self._validate(request)
        if result.rule is None:
            return None
        SECURITY_REFUSALS.count(rule=result.rule, mode=mode.value)
        # The path is truncated, since it is untrusted. Headers can contain secrets, so none are logged.
        details = {
            "rule": result.rule,
            "reason": result.error_message,
            "path": request.path[:200],
            "peer": request.peer,
            "origin": result.request_origin,
        }
        if mode is ValidationMode.PERMISSIVE:
            log.warning("served a request that violates a security rule (permissive)", **details)
            return None
        log.warning("refused a request", status=result.status, **details)
        return result.status, result.error_message

    def _validate(self, request: RequestInfo) -> RequestValidationResult:
        if request.path != _METRICS:
            return self._validator.validate(request)
        if self._may_read_metrics(request):
            return RequestValidationResult(valid=True)
        message = "metrics require a local connection or the metrics token"
        return RequestValidationResult(valid=False, rule="metrics", error_message=message)

    def _may_read_metrics(self, request: RequestInfo) -> bool:
        if is_within(request.peer, self._config.metrics_networks):
            return True
        values = header_values(request.headers, b"authorization")
        if self._token is None or len(values) != 1:
            return False
        return hmac.compare_digest(values[0], b"Bearer " + self._token.encode())


class WebPageMiddleware:
    """ASGI middleware that refuses requests of web pages in both profiles, since browsers reach local ports, too.

    It detects a page by ``Origin`` or ``Sec-Fetch-Site``, and after DNS rebinding by a public DNS name in ``Host`` on
    a local connection without the engine's signature.


    Args:
        app: The protected app.
        config: The settings with allowed origins and hosts; None allows none.
    """

    def __init__(self, app: ASGIApp, config: SecurityConfig | None) -> None:
        self._app = app
        self._origins = frozenset(config.allowed_origins if config else ())
        self._hosts = frozenset(config.allowed_hosts if config else ())
        mode = config.validation_mode if config else ValidationMode.PERMISSIVE
        self._disabled = mode is ValidationMode.DISABLED
        self._verified = mode is ValidationMode.STRICT and config is not None and config.enable_request_validation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse a request."""
        if self._disabled or scope["type"] != "http" or not (reason := self._reason(scope)):
            await self._app(scope, receive, send)
            return
        SECURITY_REFUSALS.count(rule="origin", mode=ValidationMode.STRICT.value)
        log.warning("refused a request of a web page", reason=reason, path=scope["path"][:200])
        await _refuse(receive, send, 403, reason)

    def _reason(self, scope: Scope) -> str:
        origins, hosts, from_page = [], [], False
        for name, value in scope["headers"]:
            if name == b"origin":
                origins.append(value.decode("latin-1").lower())
            elif name == b"host":
                hosts.append(value)
            elif name == b"sec-fetch-site":
                from_page = from_page or is_sent_by_page([(name, value)])
        if len(origins) == 1 and origins[0] in self._origins:
            return ""
        if origins or from_page:
            return "web pages may not call this address (PERDURE_SECURITY_ALLOWED_ORIGINS)"
        if self._verified and scope["path"] != _METRICS and scope["path"] not in PUBLIC_PATHS:
            return ""
        client = scope.get("client")
        names = [host_name(host) for host in hosts]
        if client and is_within(client[0], LOOPBACK) and any(self._is_foreign(name) for name in names):
            return "this host name is not served here: use localhost, or PERDURE_SECURITY_ALLOWED_HOSTS"
        return ""

    def _is_foreign(self, host: str | None) -> bool:
        return host is None or (is_rebindable(host) and host not in self._hosts)


async def _refuse(receive: Receive, send: Send, status: int, message: str) -> None:
    """Respond at once, then read the rest of the request, within limits.

    The engine ends its stream only after it has received the status, which granian sends with the first chunk.
    """
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{message}\n".encode(), "more_body": True})
    if not await read_remaining(receive, seconds=_READ_TIMEOUT, max_bytes=_MAX_READ_BYTES):
        log.warning("a refused request did not end in time", status=status)
    await send({"type": "http.response.body", "body": b"", "more_body": False})

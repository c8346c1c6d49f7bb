"""ASGI middleware that lets nobody in who doesn't belong."""

from __future__ import annotations

import asyncio
import hmac
from datetime import timedelta
from typing import Final

from perdure._runtime.asgi import ASGIApp, Receive, Scope, Send
from perdure.observability.logging import get_logger
from perdure.observability.metrics import SECURITY_REFUSALS
from perdure.security.browsers import host_name, is_rebindable, is_sent_by_page
from perdure.security.config import LOOPBACK, SecurityConfig, ValidationMode
from perdure.security.validator import RequestFacts, SecurityValidator, is_within

__all__ = ["OPEN_PATHS", "PageGuard", "SecurityMiddleware"]

OPEN_PATHS: Final = frozenset({"/health", "/ready"})
"""What everybody may ask: who starts and stops processes has no key. The answers tell nothing about the business."""

_METRICS: Final = "/metrics"
_PATIENCE: Final = timedelta(seconds=5)
_ENOUGH: Final = 1024 * 1024

log = get_logger(__name__)


class SecurityMiddleware:
    """Refuses, or in the permissive mode only reports, requests that break a rule of the configuration.

    ``/health`` and ``/ready`` are open. ``/metrics`` isn't the engine's to read, so it has its own rule: this machine
    (`SecurityConfig.metrics_networks`), or a bearer token. Everything else must keep all rules.

    Args:
        app: What is protected.
        config: The rules.

    Raises:
        ConfigurationError: They can't work, see `SecurityConfig.check_start`.
    """

    def __init__(self, app: ASGIApp, config: SecurityConfig) -> None:
        self._app = app
        self._config = config.check_start()
        self._validator = SecurityValidator(config)
        self._token = None if config.metrics_token is None else config.metrics_token.get_secret_value()
        if config.validation_mode is ValidationMode.DISABLED:
            log.warning("security is disabled: every request is taken, whoever sent it")
        elif not config.enable_request_validation:
            log.warning("requests are taken without the engine's signature", mode=config.validation_mode.value)
        elif config.validation_mode is ValidationMode.PERMISSIVE:
            log.warning("security is permissive: requests that break a rule are logged, and taken")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(RequestFacts.from_scope(scope))
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(receive, send, *refusal)

    def _refusal(self, request: RequestFacts) -> tuple[int, str] | None:
        mode = self._config.validation_mode
        if mode is ValidationMode.DISABLED:
            return None
        rule, status, message, origin = self._broken_rule(request)
        if not rule:
            return None
        SECURITY_REFUSALS.count(rule=rule, mode=mode.value)
        # The path is cut, since it is a stranger's. Nothing of the headers: there may be secrets in them.
        facts = {"rule": rule, "reason": message, "path": request.path[:200], "peer": request.peer, "origin": origin}
        if mode is ValidationMode.PERMISSIVE:
            log.warning("a request broke a security rule and was let through (permissive)", **facts)
            return None
        log.warning("refused a request", status=status, **facts)
        return status, message

    def _broken_rule(self, request: RequestFacts) -> tuple[str, int, str, str]:
        """Return the name of the rule, the status, the message and the origin; no name when all is well."""
        if request.path == _METRICS:
            if self._may_read_metrics(request):
                return "", 200, "", ""
            return "metrics", 401, "metrics are for this machine, or with the token", ""
        result = self._validator.validate(request)
        return result.rule or "", result.status, result.error_message, result.request_origin

    def _may_read_metrics(self, request: RequestFacts) -> bool:
        if is_within(request.peer, self._config.metrics_networks):
            return True
        given = request.values(b"authorization")
        if self._token is None or len(given) != 1:
            return False
        return hmac.compare_digest(given[0], b"Bearer " + self._token.encode())


class PageGuard:
    """Refuses requests that a web page has caused, whatever the profile: a browser sends those to this machine, too.

    A page is known by ``Origin`` or ``Sec-Fetch-Site``; after DNS rebinding, by a ``Host`` in the public DNS on a
    connection from this machine, where the engine's signature doesn't tell who calls.

    Args:
        app: What is protected.
        config: Which pages and hosts may call; None lets no page in.
    """

    def __init__(self, app: ASGIApp, config: SecurityConfig | None) -> None:
        self._app = app
        self._origins = frozenset(config.allowed_origins if config else ())
        self._hosts = frozenset(config.allowed_hosts if config else ())
        mode = config.validation_mode if config else ValidationMode.PERMISSIVE
        self._off = mode is ValidationMode.DISABLED
        self._verified = mode is ValidationMode.STRICT and config is not None and config.enable_request_validation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if self._off or scope["type"] != "http" or not (why := self._reason(scope)):
            await self._app(scope, receive, send)
            return
        SECURITY_REFUSALS.count(rule="origin", mode=ValidationMode.STRICT.value)
        log.warning("refused a request of a web page", reason=why, path=scope["path"][:200])
        await _refuse(receive, send, 403, why)

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
        if self._verified and scope["path"] != _METRICS and scope["path"] not in OPEN_PATHS:
            return ""
        client = scope.get("client")
        names = [host_name(host) for host in hosts]
        if client and is_within(client[0], LOOPBACK) and any(self._is_foreign(name) for name in names):
            return "this host name is not served here: use localhost, or PERDURE_SECURITY_ALLOWED_HOSTS"
        return ""

    def _is_foreign(self, host: str | None) -> bool:
        return host is None or (is_rebindable(host) and host not in self._hosts)


async def _refuse(receive: Receive, send: Send, status: int, message: str) -> None:
    """Answer at once, then let the caller finish sending, within limits.

    The engine ends its side only when it has seen the status, and granian sends the status with a first chunk.
    """
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{message}\n".encode(), "more_body": True})
    taken = 0
    try:
        async with asyncio.timeout(_PATIENCE.total_seconds()):
            while taken < _ENOUGH:
                event = await receive()
                taken += len(event.get("body", b""))
                if event["type"] == "http.disconnect" or not event.get("more_body", False):
                    break
    except TimeoutError:
        log.warning("a refused request didn't end by itself", status=status)
    await send({"type": "http.response.body", "body": b"", "more_body": False})

"""The ASGI app of a process: handlers, health, readiness, metrics."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import restate

from perdure._runtime import sdk, sealing
from perdure._runtime.asgi import ASGIApp, Receive, Scope, Send, respond, respond_json, sending_status_at_once
from perdure.errors import ConfigurationError
from perdure.observability.instruments import export_to_prometheus, prometheus_text
from perdure.observability.logging import get_logger
from perdure.observability.metrics import ATTEMPTS, record_metrics
from perdure.security.config import SecurityConfig, ValidationMode
from perdure.security.invocations import refusing_pages
from perdure.security.middleware import PageGuard, SecurityMiddleware
from perdure.serving.drain import Drain

__all__ = ["HasDefinitions", "ReadinessCheck", "Servable", "ServiceApp", "build_app"]

Definition = restate.Service | restate.VirtualObject | restate.Workflow

ReadinessCheck = Callable[[], Awaitable[object]]
"""Raises when the process can't do its work now, for example when its database doesn't answer."""

_CHECK_TIMEOUT = timedelta(seconds=2)

log = get_logger(__name__)


@runtime_checkable
class HasDefinitions(Protocol):
    """Something that is served as one or more of the SDK's services."""

    def definitions(self) -> Sequence[Definition]:
        """Return the services to serve."""
        ...


Servable = Definition | HasDefinitions
"""What can be served: a service of perdure's or of the SDK's."""


class ServiceApp:
    """An ASGI app that serves handlers to the engine, and tells people and machines how it is. See `build_app`.

    ========== =================================================================================
    /health    200 while the process lives
    /metrics   the process's metrics, as Prometheus reads them
    /ready     200 when it can take work; 503 with reasons while a check fails or it drains
    /discover  asked by the engine at registration
    /invoke/…  an attempt of an invocation
    ========== =================================================================================
    """

    def __init__(
        self,
        handlers: ASGIApp,
        names: Sequence[str],
        readiness: Mapping[str, ReadinessCheck],
        security: SecurityConfig | None = None,
    ) -> None:
        self.names = tuple(names)
        self.drain = Drain(handlers)
        self._handlers = handlers
        self._readiness = readiness
        inner = PageGuard(self._serve, security)
        self._entrance = inner if security is None else SecurityMiddleware(inner, security)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            # ASGI's way to say that a protocol isn't spoken here; a server then goes on without it.
            raise NotImplementedError(f"{scope['type']} is not served")
        await self._entrance(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if "/invoke/" in path:
            service, handler = path.split("/")[-2:]
            if service in self.names:  # anything else is a stranger's, and no label
                ATTEMPTS.count(service=service, handler=handler)
            await self.drain(scope, receive, sending_status_at_once(send))
        elif path == "/health":
            await respond_json(send, 200, {"status": "ok"})
        elif path == "/ready":
            await self._ready(send)
        elif path == "/metrics":
            body, content_type = prometheus_text()
            await respond(send, 200, body, content_type)
        else:
            await self._handlers(scope, receive, sending_status_at_once(send))

    async def _ready(self, send: Send) -> None:
        if self.drain.draining:
            await respond_json(send, 503, {"status": "draining"})
            return
        names = list(self._readiness)
        faults = await asyncio.gather(*(_check(name, self._readiness[name]) for name in names))
        checks = {name: fault or "ok" for name, fault in zip(names, faults, strict=True)}
        status = "unready" if any(faults) else "ready"
        await respond_json(send, 503 if any(faults) else 200, {"status": status, "checks": checks})


def build_app(
    *services: Servable,
    readiness: Mapping[str, ReadinessCheck] | None = None,
    security: SecurityConfig | None = None,
    identity_keys: Iterable[str] = (),
) -> ServiceApp:
    """Make the ASGI app that serves services. `serve` does that and runs it.

    Args:
        services: What to serve.
        readiness: Checks behind ``/ready``, by name. Each has 2 seconds.
        security: Who may call, and whether the journal is encrypted; None lets anyone call, and says so in the log.
        identity_keys: Short for a `SecurityConfig` that asks for nothing but the signature of one of these engines:
            their public keys (``publickeyv1_…``).

    Returns:
        The app. Its `ServiceApp.drain` brings open attempts to an end before a stop.

    Raises:
        ConfigurationError: Nothing to serve, something that can't be, two services of one name, or security settings
            that can't work or protect nobody.
    """
    security = _security(security, list(identity_keys))
    definitions = list(definitions_of(services))
    if not definitions:
        raise ConfigurationError("there is nothing to serve: name at least one service")
    names = [definition.name for definition in definitions]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"two services have the same name: {', '.join(doubles)}")
    definitions = [_protected(definition, security) for definition in definitions]
    # The signature is checked in front of all this, and not by the SDK, which knows only one of the three modes.
    codec = None if security is None else security.codec()
    if codec is not None:
        definitions = [sealing.sealed(definition, codec) for definition in definitions]
    unsealed = None if codec is None else sealing.UNSEALED_REFUSED
    handlers = sdk.build_asgi_app(definitions, unsealed)
    export_to_prometheus()
    record_metrics()
    return ServiceApp(handlers, names, readiness or {}, security)


def _security(security: SecurityConfig | None, identity_keys: list[str]) -> SecurityConfig | None:
    if security is not None and identity_keys:
        raise ConfigurationError("give the engines' keys in the security settings, and not beside them")
    if identity_keys:
        try:
            return SecurityConfig.development(
                enable_request_validation=True,
                validation_mode=ValidationMode.STRICT,
                signing_keys=tuple(identity_keys),
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"an identity key is malformed: {error}") from error
    if security is None:
        log.warning("handlers are served to anyone who can reach this port: no security settings are given")
    return security


def _protected(definition: Definition, security: SecurityConfig | None) -> Definition:
    """Return a service whose handlers refuse web pages, and stay off the ingress unless they say that they are public.

    The latter is a setting; the former holds without one, unless all checks are disabled.
    """
    keeps_private = security is not None and security.restrict_public_access
    takes_pages = security is not None and security.validation_mode is ValidationMode.DISABLED
    origins = frozenset(security.allowed_origins if security else ())

    def protected(each: Any) -> Any:
        private = True if keeps_private and each.ingress_private is None else each.ingress_private
        function = each.fn if takes_pages else refusing_pages(each.fn, origins)
        return dataclasses.replace(each, ingress_private=private, fn=function)

    kept = copy.copy(definition)  # the original may be served elsewhere with other settings
    kept.handlers = {name: protected(each) for name, each in definition.handlers.items()}
    return kept


def definitions_of(services: Iterable[object]) -> Iterable[Definition]:
    """Return the SDK's services that a process serves.

    Args:
        services: What is to be served, see `build_app`.

    Raises:
        ConfigurationError: Something that can't be served.
    """
    for service in services:
        if isinstance(service, Definition):
            yield service
        elif isinstance(service, HasDefinitions):
            yield from service.definitions()
        else:
            raise ConfigurationError(f"{service!r} can't be served: give a service, a virtual object or a workflow")


async def _check(name: str, check: ReadinessCheck) -> str | None:
    """Return why a check fails, or None. The reason is short: details may be confidential, and go to the log."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT.total_seconds()):
            await check()
    except TimeoutError:
        log.warning("readiness check timed out", check=name, seconds=_CHECK_TIMEOUT.total_seconds())
        return "timed out"
    except Exception as error:
        log.warning("readiness check failed", check=name, exc_info=error)
        return f"failed ({type(error).__name__})"
    return None

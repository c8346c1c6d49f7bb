"""ASGI app of a service process: handlers, health, readiness, metrics."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import restate

from perdure._runtime import engine_retries, late_cancel, sdk, sealing
from perdure._runtime.admin_url import admin_url
from perdure._runtime.asgi import ASGIApp, Receive, Scope, Send, respond, respond_json, sending_status_at_once
from perdure._runtime.engine_retries import EngineRetries
from perdure._runtime.message_sizes import engine_limits
from perdure.engine.admin import cancel_finder
from perdure.errors import ConfigurationError, PerdureError
from perdure.observability.instruments import export_to_prometheus, prometheus_text
from perdure.observability.logging import get_logger
from perdure.observability.metrics import ATTEMPTS, record_metrics
from perdure.security.browsers import reject_web_pages
from perdure.security.config import SecurityConfig, ValidationMode
from perdure.security.middleware import SecurityMiddleware, WebPageMiddleware
from perdure.serving.declarations import declared
from perdure.serving.drain import Drain
from perdure.serving.threads import DEFAULT_THREADS, WatchedPool, observe_threads, thread_limit

Definition = restate.Service | restate.VirtualObject | restate.Workflow

ReadinessCheck = Callable[[], Awaitable[object]]
"""Check that raises while the process is not ready, for example because its database does not respond."""

_CHECK_TIMEOUT = timedelta(seconds=2)

log = get_logger(__name__)


@runtime_checkable
class HasDefinitions(Protocol):
    """Object that consists of one or more SDK services."""

    def definitions(self) -> Sequence[Definition]:
        """Return the SDK's services."""
        ...


@runtime_checkable
class HasBackgroundWork(Protocol):
    """Service with work of its process besides its handlers, such as a reconciler."""

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Do the work while the context is entered; `perdure.serving.serve` enters it."""
        ...


Servable = Definition | HasDefinitions
"""Service of Perdure or of the SDK."""


class ServiceApp:
    """ASGI app that serves handlers to the engine. See `build_app`.

    ========== ================================================================================
    /health    200 while the process runs
    /metrics   metrics in Prometheus format
    /ready     200 when ready for requests; 503 with reasons while a check fails, it drains, or its
               threads are used up
    /discover  discovery at registration
    /invoke/…  an attempt of an invocation
    ========== ================================================================================
    """

    def __init__(
        self,
        handlers: ASGIApp,
        names: Sequence[str],
        readiness: Mapping[str, ReadinessCheck],
        security: SecurityConfig | None = None,
        *,
        threads: int = DEFAULT_THREADS,
    ) -> None:
        self.names = tuple(names)
        self.drain = Drain(handlers)
        self._handlers = handlers
        self._readiness = readiness
        protected = WebPageMiddleware(self._serve, security)
        self._threads = threads
        self._pool: WatchedPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._app = protected if security is None else SecurityMiddleware(protected, security)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            # The ASGI convention for unsupported protocols.
            raise NotImplementedError(f"{scope['type']} is not served")
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._loop, self._pool = loop, WatchedPool(self._threads, loop)
            loop.set_default_executor(self._pool)
        await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if "/invoke/" in path:
            service, handler = path.split("/")[-2:]
            if service in self.names:  # other names are untrusted input and must not become labels
                ATTEMPTS.count(service=service, handler=handler)
            late_cancel.find_cancel.set(None if (url := admin_url()) is None else cancel_finder(url))
            retries = EngineRetries(receive)
            engine_retries.current.set(retries)
            await self.drain(scope, retries, sending_status_at_once(send))
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
        errors = await asyncio.gather(*(_check(name, self._readiness[name]) for name in names))
        checks = {name: error or "ok" for name, error in zip(names, errors, strict=True)}
        if self._pool is not None and (problem := self._pool.problem()) is not None:
            checks["threads"] = problem
            errors.append(problem)
        status = "unready" if any(errors) else "ready"
        await respond_json(send, 503 if any(errors) else 200, {"status": status, "checks": checks})


def build_app(
    *services: Servable,
    readiness: Mapping[str, ReadinessCheck] | None = None,
    security: SecurityConfig | None = None,
    identity_keys: Iterable[str] = (),
) -> ServiceApp:
    """Return the ASGI app that serves services. `serve` also runs it.

    Args:
        services: The services.
        readiness: The checks of ``/ready`` by name, each limited to 2 seconds.
        security: The security settings. None accepts all callers and logs a warning.
        identity_keys: Short for a `SecurityConfig` that only verifies request identity: the engines' public keys
            (``publickeyv1_…``).

    Returns:
        The app. Its `ServiceApp.drain` ends open attempts before a stop.

    Raises:
        ConfigurationError: There are no services, an object is not a service, two services have the same name, or the
            security settings are refused.
    """
    security = _security_config(security, list(identity_keys))
    definitions = list(sdk_definitions(services))
    if not definitions:
        raise ConfigurationError("no services to serve: pass at least one")
    names = [definition.name for definition in definitions]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"two services have the same name: {', '.join(duplicates)}")
    definitions = [_protected(declared(definition), security) for definition in definitions]
    # SecurityMiddleware verifies the signature, since the SDK supports only one of the three modes.
    codec = None if security is None else security.codec()
    if codec is not None:
        definitions = [sealing.sealed(definition, codec) for definition in definitions]
    unsealed = None if codec is None else sealing.UNSEALED_REFUSED
    handlers = sdk.build_asgi_app(definitions, unsealed)
    export_to_prometheus()
    record_metrics()
    observe_threads()
    engine_limits()  # a malformed setting is reported at the start
    return ServiceApp(handlers, names, readiness or {}, security, threads=thread_limit(os.environ))


def _security_config(security: SecurityConfig | None, identity_keys: list[str]) -> SecurityConfig | None:
    if security is not None and identity_keys:
        raise ConfigurationError("pass either security or identity_keys, not both")
    if identity_keys:
        try:
            return SecurityConfig.development(
                enable_request_validation=True,
                validation_mode=ValidationMode.STRICT,
                signing_keys=tuple(identity_keys),
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"malformed identity key: {error}") from error
    if security is None:
        log.warning("no security settings: every client that reaches this port can call handlers")
    return security


def _protected(definition: Definition, security: SecurityConfig | None) -> Definition:
    """Return a service that refuses web pages, and is private unless declared public if the settings require it."""
    private_by_default = security is not None and security.restrict_public_access
    unprotected = security is not None and security.validation_mode is ValidationMode.DISABLED
    origins = frozenset(security.allowed_origins if security else ())

    def protect(handler: Any) -> Any:
        private = True if private_by_default and handler.ingress_private is None else handler.ingress_private
        function = handler.fn if unprotected else reject_web_pages(handler.fn, origins)
        return dataclasses.replace(handler, ingress_private=private, fn=function)

    protected = copy.copy(definition)  # the original can be served elsewhere with other settings
    protected.handlers = {name: protect(handler) for name, handler in definition.handlers.items()}
    return protected


def sdk_definitions(services: Iterable[object]) -> Iterable[Definition]:
    """Return the SDK's services of services.

    Raises:
        ConfigurationError: An object is not a service.
    """
    for service in services:
        if isinstance(service, Definition):
            yield service
        elif isinstance(service, HasDefinitions):
            yield from service.definitions()
        else:
            raise ConfigurationError(f"cannot serve {service!r}: pass a service, virtual object or workflow")


async def _check(name: str, check: ReadinessCheck) -> str | None:
    """Return the failure of a check, or None.

    Perdure's own errors are for people. Details of others can be confidential, so they are only logged.
    """
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT.total_seconds()):
            await check()
    except TimeoutError:
        log.warning("readiness check timed out", check=name, seconds=_CHECK_TIMEOUT.total_seconds())
        return "timed out"
    except PerdureError as error:
        log.warning("readiness check failed", check=name, reason=str(error))
        return str(error)
    except Exception as error:
        log.warning("readiness check failed", check=name, exc_info=error)
        return f"failed ({type(error).__name__})"
    return None

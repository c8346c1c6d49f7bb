"""Services that are served for a test and registered with an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from perdure import schedules
from perdure._runtime.admin_url import served_to
from perdure._runtime.asgi import Receive, Scope, Send
from perdure.approvals import service as approvals
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.catalog import Catalog
from perdure.errors import ConfigurationError
from perdure.observability.logging import get_logger
from perdure.saga import hosting as sagas
from perdure.saga.policy import compensation_service
from perdure.security.config import SecurityConfig
from perdure.serving import HttpVersion, Servable, ServiceApp, build_app, listening
from perdure.serving.app import sdk_definitions
from perdure.serving.declarations import is_saga
from perdure.testing.background import BackgroundLoop
from perdure.testing.server import RestateServer

log = get_logger(__name__)


class Mode(StrEnum):
    """Engine mode: the way in which engine and services communicate."""

    HTTP2 = "http2"
    """One stream per attempt; waiting handlers stay in memory for a while."""
    REQUEST_RESPONSE = "request_response"
    """HTTP/1.1; each wait ends the attempt, and the next one replays."""
    ALWAYS_SUSPENDING = "always_suspending"
    """HTTP/2, with a suspension at each wait."""
    VQUEUES = "vqueues"
    """HTTP/2, on an engine with the features that Restate 1.8 enables by default: virtual queues and protocol 7."""


class ServedApp:
    """App that is served on a real port by a background event loop; a context manager.

    Handlers run while the test blocks or closes its own loop. Data shared by handlers and test must be thread-safe.

    Args:
        app: The app, see `perdure.serving.build_app`.
        http: The HTTP version.
        admin_url: The admin API of the engine that calls the app.
    """

    def __init__(self, app: ServiceApp, *, http: HttpVersion = "2", admin_url: str | None = None) -> None:
        self.app = app
        self._admin_url = admin_url
        self._http: HttpVersion = http
        self._loop = BackgroundLoop("perdure-served-app")
        self._stack = AsyncExitStack()
        self.url = ""

    def __enter__(self) -> Self:
        """Listen on a free port, see `url`."""
        self._loop.start()
        try:
            self.url = self._loop.call(self._stack.enter_async_context(listening(self._serve, http=self._http))).url
        except BaseException:
            self._loop.stop()
            raise
        return self

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        served_to.set(self._admin_url)
        await self.app(scope, receive, send)

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        try:
            self._loop.call(self._stack.aclose())
        finally:
            self._loop.stop()


@dataclass(frozen=True)
class RestateEnvironment:
    """Served services and their engine.

    Args:
        ingress: The URL of the engine's ingress.
        admin: The URL of the engine's admin API.
        url: The URL of the services.
        services: The names of the services.
        mode: The engine mode.
        server: The engine.
        app: The app that serves the services.
    """

    ingress: str
    admin: str
    url: str
    services: tuple[str, ...]
    mode: Mode
    server: RestateServer
    app: ServiceApp


@dataclass
class Restate:
    """Serves services to an engine, and removes them when it is closed."""

    server: RestateServer
    mode: Mode
    _served: list[tuple[ServedApp, RestateEnvironment]] = field(default_factory=list)

    async def serve(
        self,
        *services: Servable,
        identity_keys: Sequence[str] = (),
        security: SecurityConfig | None = None,
        check_targets: bool = True,
        host_platform: bool = False,
    ) -> RestateEnvironment:
        """Serve and register services until the test ends.

        State and workflow keys outlive a test, since tests share the engine: use unique keys.

        Args:
            services: The services to serve.
            identity_keys: The public keys of permitted engines, see `perdure.serving.build_app`.
            security: The security configuration, instead of the identity keys.
            check_targets: Compare the targets in the handlers' code with the registered handlers.
            host_platform: Also serve rollbacks, dead letters, approvals and schedules, which sagas need.

        Raises:
            ConfigurationError: The services are invalid, call handlers with other types, or `Rollbacks`, which their
                sagas need, is not served.
            EngineError: The engine refused the registration.
        """
        if host_platform:
            services = (*services, *sagas.definitions(), *approvals.definitions(), *schedules.definitions())
        http1 = self.mode is Mode.REQUEST_RESPONSE
        app = build_app(*services, identity_keys=identity_keys, security=security)
        served = ServedApp(app, http="1" if http1 else "2", admin_url=self.server.admin)
        served.__enter__()
        try:
            async with AdminClient(self.server.admin) as admin:
                await _check_rollbacks(admin, services)
                if check_targets:
                    await _check_targets(admin, await admin.discover(served.url, use_http_11=http1))
                names = await admin.register(served.url, use_http_11=http1)
        except BaseException:
            served.__exit__()
            raise
        environment = RestateEnvironment(
            ingress=self.server.ingress,
            admin=self.server.admin,
            url=served.url,
            services=tuple(names),
            mode=self.mode,
            server=self.server,
            app=served.app,
        )
        self._served.append((served, environment))
        return environment

    async def close(self) -> None:
        """Kill running invocations, remove the registrations, and stop listening."""
        while self._served:
            served, environment = self._served.pop()
            try:
                if self.server.engine.running:
                    async with AdminClient(self.server.admin) as admin:
                        await _remove(admin, environment)
            finally:
                served.__exit__()


async def _check_rollbacks(admin: AdminClient, services: Sequence[Servable]) -> None:
    """Reject sagas without `Rollbacks`, since a failing saga would wait for it forever."""
    definitions = list(sdk_definitions(services))
    names = {each.name for each in definitions}
    found = sorted(each.name for each in definitions if is_saga(each) or compensation_service(each.name) in names)
    if found and "Rollbacks" not in names | {str(each["name"]) for each in await admin.services()}:
        raise ConfigurationError(f"the sagas of {', '.join(found)} need Rollbacks; serve them with host_platform=True")


async def _check_targets(admin: AdminClient, discovered: Sequence[Mapping[str, Any]]) -> None:
    """Reject calls that would fail at each attempt.

    A missing service is only logged, since the test may serve it later, and so is a key that may be missing, since the
    call names it.
    """
    names = {str(service["name"]) for service in discovered}
    others = [service for service in await admin.services() if service["name"] not in names]
    problems = Catalog([*others, *discovered]).problems(names)
    tolerated = [problem for problem in problems if problem.missing or problem.field == "key"]
    for problem in tolerated:
        log.warning("target.mistaken", target=problem.target, problem=problem.text)
    if wrong := [problem.text for problem in problems if problem not in tolerated]:
        raise ConfigurationError("; ".join(wrong))


async def _remove(admin: AdminClient, environment: RestateEnvironment) -> None:
    names = ", ".join(sql_text(name) for name in environment.services)
    running = await admin.query(
        f"select id from sys_invocation where target_service_name in ({names}) and status != 'completed'"  # noqa: S608 - quoted
    )
    for row in running:
        await admin.control_if_permitted(row["id"], "kill")  # it may have ended
    for deployment in await admin.deployments():
        if str(deployment.get("uri", "")).rstrip("/") == environment.url:
            await admin.remove_deployment(deployment["id"])

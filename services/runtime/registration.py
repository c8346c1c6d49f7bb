"""Registration of services with the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perdure.dev.processes import ProcessError
from perdure.dev.waits import reported_wait
from perdure.engine.admin import AdminClient
from perdure.engine.catalog import SINGLETONS, Catalog, conflicts
from perdure.errors import ConfigurationError, EngineError
from perdure.observability.logging import get_logger
from services.runtime.connections import admin_client, open_http, problem_at
from services.runtime.settings import PlatformSettings
from services.runtime.topology import SERVICES, ServiceSpec, Topology, service

_POLL = 0.1

log = get_logger(__name__)


@dataclass(frozen=True)
class Registration:
    """A service and its address.

    Args:
        service: The service.
        url: Address of the service for the engine.
    """

    service: ServiceSpec
    url: str


async def register(
    admin: AdminClient,
    registrations: Sequence[Registration],
    *,
    beside: bool = False,
    retry: timedelta = timedelta(0),
) -> None:
    """Register services, and move deployments whose address has changed. Log the calls that would fail.

    Invocations stay on the deployment that they started on. Moving a deployment therefore keeps open invocations
    reachable after a change of address.

    Args:
        admin: Client of the admin API.
        registrations: The services.
        beside: Keep deployments at other addresses, because older versions still run there. See
            `services.runtime.upgrade`.
        retry: How long to repeat a registration that fails, for example because the service is starting again.

    Raises:
        ProcessError: The engine rejects or does not reach a service, finds other services at its address, or serves
            another platform.
    """
    deadline = time.monotonic() + retry.total_seconds()
    for each in registrations:
        while True:
            try:
                await _register_one(admin, each, beside=beside)
                break
            except EngineError as error:
                if time.monotonic() > deadline:
                    raise ProcessError(
                        f"{each.service.name} at {each.url} could not be registered: {_one_line(error)}"
                    ) from error
            await asyncio.sleep(_POLL)
    for problem in Catalog(await admin.services()).problems():
        log.warning("registration.call_would_fail", problem=problem.text)


async def _register_one(admin: AdminClient, wanted: Registration, *, beside: bool) -> None:
    deployments = await admin.deployments()
    await _refuse_other_platform(admin, deployments, wanted)
    for deployment in deployments:
        if not beside and _has_moved(deployment, wanted):
            await admin.move_deployment(deployment["id"], wanted.url)
    found = await admin.register(wanted.url)
    if missing := sorted(set(wanted.service.serves) - set(found)):
        raise ProcessError(
            f"{wanted.service.name} at {wanted.url} could not be registered: "
            f"expected {', '.join(missing)}, but it serves {', '.join(sorted(found)) or 'nothing'}"
        )


async def _refuse_other_platform(
    admin: AdminClient, deployments: Sequence[Mapping[str, Any]], wanted: Registration
) -> None:
    """Refuse a service that would take over the work of another platform, before the engine knows it."""
    if not SINGLETONS & set(wanted.service.serves):
        return
    others = [
        await admin.deployment(deployment["id"])
        for deployment in deployments
        if _serves(deployment) & SINGLETONS and not _is_at(deployment, wanted.url)
    ]
    new = {"uri": wanted.url, "services": await admin.discover(wanted.url)}
    if problem := next((problem for other in others for problem in conflicts([other, new])), None):
        raise ProcessError(f"{wanted.service.name} at {wanted.url} is not registered: {problem}")


async def register_all(
    settings: PlatformSettings,
    admin_url: str | None,
    at: Sequence[str],
    *,
    timeout: timedelta,
    report: Callable[[str], None],
    beside: bool = False,
) -> list[Registration]:
    """Wait until the engine and the services answer, and register the services.

    Args:
        settings: Default addresses: all services on this machine.
        admin_url: The admin API; None for the default.
        at: Services at other addresses, as ``name=url``. If given, only these are registered.
        timeout: How long to wait.
        report: Receives a line if the wait takes longer than a few seconds.
        beside: See `register`.

    Returns:
        The registered services.

    Raises:
        ConfigurationError: ``at`` has an unknown service or an invalid address.
        ProcessError: A service does not answer or cannot be registered.
    """
    topology = Topology.from_settings(settings)
    registrations = [_parse(text) for text in at] or [
        Registration(spec, topology.service_url(spec.name)) for spec in SERVICES
    ]
    async with admin_client(admin_url or topology.admin_url) as admin:
        await _wait_until_reachable(admin, registrations, timeout, report)
        await register(admin, registrations, beside=beside)
    return registrations


def _parse(text: str) -> Registration:
    name, _, url = text.partition("=")
    spec = service(name)
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"'{text}' has no valid address: write {name}=http://host:port")
    return Registration(spec, url.rstrip("/"))


async def _wait_until_reachable(
    admin: AdminClient, registrations: Sequence[Registration], timeout: timedelta, report: Callable[[str], None]
) -> None:
    deadline = time.monotonic() + timeout.total_seconds()
    urls = [f"{admin.url}/health", *(f"{each.url}/ready" for each in registrations)]
    problem: str | None = None
    async with open_http(*urls) as http:
        for url in urls:
            async with reported_wait(report, lambda url=url: f"{url}, which {problem}"):  # type: ignore[misc]
                while (problem := await problem_at(http, url)) is not None:
                    if time.monotonic() > deadline:
                        raise ProcessError(f"{url} {problem} (waited {timeout.total_seconds():g} s): is it running?")
                    await asyncio.sleep(_POLL)


def _has_moved(deployment: dict[str, Any], wanted: Registration) -> bool:
    return bool(_serves(deployment) & set(wanted.service.serves)) and not _is_at(deployment, wanted.url)


def _serves(deployment: Mapping[str, Any]) -> set[str]:
    return {service["name"] for service in deployment["services"]}


def _is_at(deployment: Mapping[str, Any], url: str) -> bool:
    return str(deployment["uri"]).rstrip("/") == url.rstrip("/")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

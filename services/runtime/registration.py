"""Registration of the platform's services with the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from perdure.dev.processes import ProcessError
from perdure.dev.waits import reported_wait
from perdure.engine.admin import AdminClient
from perdure.engine.deployments import Registration, failing_calls, register
from perdure.errors import ConfigurationError
from services.runtime.connections import admin_client, open_http, problem_at
from services.runtime.settings import PlatformSettings
from services.runtime.topology import SERVICES, ServiceSpec, Topology, service

_POLL = 0.1


def registration(spec: ServiceSpec, url: str) -> Registration:
    """Return the registration of a service.

    Args:
        spec: The service.
        url: Its address for the engine.
    """
    return Registration(spec.name, url, spec.serves)


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

    Invocations stay on the deployment that they started on. Deployments whose address has changed are moved, which
    keeps open invocations reachable.

    Args:
        settings: Default addresses: all services on this machine.
        admin_url: The admin API; None for the default.
        at: Services at other addresses, as ``name=url``. If given, only these are registered.
        timeout: How long to wait.
        report: Receives a line if the wait takes longer than a few seconds, and one per call that would fail.
        beside: Keep deployments at other addresses, because older versions still run there.

    Returns:
        The registered services.

    Raises:
        ConfigurationError: ``at`` has an unknown service or an invalid address.
        DeploymentError: A service cannot be registered.
        ProcessError: A service does not answer.
    """
    topology = Topology.from_settings(settings)
    registrations = [_parse(text) for text in at] or [
        registration(spec, topology.service_url(spec.name)) for spec in SERVICES
    ]
    async with admin_client(admin_url or topology.admin_url) as admin:
        await _wait_until_reachable(admin, registrations, timeout, report)
        await register(admin, registrations, elsewhere="keep" if beside else "move")
        for problem in await failing_calls(admin):
            report(f"warning: {problem}")
    return registrations


def _parse(text: str) -> Registration:
    name, _, url = text.partition("=")
    spec = service(name)
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"'{text}' has no valid address: write {name}=http://host:port")
    return registration(spec, url.rstrip("/"))


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

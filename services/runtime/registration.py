"""Telling the engine where services are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perdure.dev.processes import ProcessError
from perdure.engine.admin import AdminClient
from perdure.errors import ConfigurationError, EngineError
from services.runtime.connections import admin_client, answers, local_http
from services.runtime.settings import PlatformSettings
from services.runtime.topology import SERVICES, ServiceSpec, Topology, service

_POLL = 0.1


@dataclass(frozen=True)
class Registration:
    """One service to register.

    Args:
        service: Which one.
        url: Where the engine reaches it.
    """

    service: ServiceSpec
    url: str


async def register(admin: AdminClient, registrations: Sequence[Registration], *, beside: bool = False) -> None:
    """Register services, and move those that the engine knows at another address.

    Invocations stay with the deployment that they began on. So a service that comes back at another address keeps its
    deployment, or a trip that waits for an approval would look for it at the old one for ever.

    Args:
        admin: The engine.
        registrations: What to register.
        beside: Leave the deployment at the other address as it is: it is an older version that still runs there, see
            `services.runtime.upgrade`.

    Raises:
        ProcessError: The engine refused one, does not reach it, or found other services there.
    """
    for each in registrations:
        try:
            for deployment in await admin.deployments():
                if not beside and _is_elsewhere(deployment, each):
                    await admin.move_deployment(deployment["id"], each.url)
            found = await admin.register(each.url)
        except EngineError as error:
            raise ProcessError(f"{each.service.name} at {each.url} could not be registered: {_line(error)}") from error
        if missing := sorted(set(each.service.serves) - set(found)):
            raise ProcessError(
                f"{each.service.name} at {each.url} could not be registered: "
                f"{', '.join(missing)} expected there, but it serves {', '.join(sorted(found)) or 'nothing'}"
            )


async def register_all(
    settings: PlatformSettings, admin_url: str | None, at: Sequence[str], *, within: timedelta, beside: bool = False
) -> list[Registration]:
    """Wait until the engine and the services answer, and register the services.

    Args:
        settings: Where all of them are when the arguments don't say otherwise: on this machine.
        admin_url: The engine's admin API.
        at: Services that are elsewhere, as ``name=url``; then only these are registered.
        within: How long to wait.
        beside: See `register`.

    Returns:
        What was registered.

    Raises:
        ConfigurationError: ``at`` names no service, or no address.
        ProcessError: One does not answer, or can't be registered.
    """
    topology = Topology.from_settings(settings)
    registrations = [_parse(text) for text in at] or [
        Registration(spec, topology.service_url(spec.name)) for spec in SERVICES
    ]
    async with admin_client(admin_url or topology.admin_url) as admin:
        await _until_reachable(admin, registrations, within)
        await register(admin, registrations, beside=beside)
    return registrations


def _parse(text: str) -> Registration:
    name, _, url = text.partition("=")
    spec = service(name)
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"'{text}' says no address: write it as {name}=http://host:port")
    return Registration(spec, url.rstrip("/"))


async def _until_reachable(admin: AdminClient, registrations: Sequence[Registration], within: timedelta) -> None:
    give_up = time.monotonic() + within.total_seconds()
    async with local_http() as http:
        for url in [f"{admin.url}/health", *(f"{each.url}/ready" for each in registrations)]:
            while not await answers(http, url):
                if time.monotonic() > give_up:
                    raise ProcessError(f"{url} does not answer within {within.total_seconds():g} s: is it running?")
                await asyncio.sleep(_POLL)


def _is_elsewhere(deployment: dict[str, Any], wanted: Registration) -> bool:
    names = {service["name"] for service in deployment["services"]}
    return bool(names & set(wanted.service.serves)) and str(deployment["uri"]).rstrip("/") != wanted.url.rstrip("/")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

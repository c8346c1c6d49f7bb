"""Deployments of services at an engine: registration, draining of old versions, and removal.

An invocation stays on the deployment that it started on. A new version of a service therefore has an address of its
own: new invocations go there once it is registered, and the old process runs until its last invocation has completed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel

from perdure.engine.admin import AdminClient
from perdure.engine.catalog import SINGLETONS, Catalog, conflicts
from perdure.errors import EngineError, PerdureError

_POLL: Final = 0.1
_DRAIN_POLL: Final = 0.5

Elsewhere = Literal["refuse", "keep", "move", "replace"]
"""What happens to deployments of the same services at other addresses.

- ``refuse``: the registration fails.
- ``keep``: new invocations go to the new address, and open ones stay. A deployment of another platform is refused.
- ``move``: the code is the same at a new address, so open invocations move as well. Another platform is refused.
- ``replace``: like ``keep``, also for a deployment of another platform.
"""


class DeploymentError(PerdureError):
    """A deployment cannot be registered, drained or removed."""


@dataclass(frozen=True)
class Registration:
    """Services to register.

    Args:
        name: Name of the process, for messages.
        url: Address of the process for the engine.
        serves: Services that the process must serve; empty for any.
        http1: Whether the process serves HTTP/1.1 only.
    """

    name: str
    url: str
    serves: Collection[str] = ()
    http1: bool = False


class Deployment(BaseModel):
    """A registered deployment.

    Args:
        id: Deployment ID.
        url: Address.
        services: Services that it serves.
        current: Those of them whose new invocations it receives.
        open_invocations: Invocations that started on it and have not completed.
        created_at: When it was registered.
    """

    id: str
    url: str
    services: list[str]
    current: list[str]
    open_invocations: int
    created_at: datetime | None = None


async def register(
    admin: AdminClient,
    registrations: Sequence[Registration],
    *,
    elsewhere: Elsewhere = "refuse",
    retry: timedelta = timedelta(0),
) -> dict[str, list[str]]:
    """Register processes, and discover the services of registered addresses again.

    Args:
        admin: Client of the admin API.
        registrations: The processes.
        elsewhere: What happens to deployments of the same services at other addresses.
        retry: How long to repeat a registration that fails, for example because the process or the engine is starting.

    Returns:
        The registered services of each process, by its name.

    Raises:
        DeploymentError: The engine rejects or does not reach a process, finds other services at its address, or already
            has its services at another address.
    """
    deadline = time.monotonic() + retry.total_seconds()
    registered = {}
    for each in registrations:
        while True:
            try:
                registered[each.name] = await _register_one(admin, each, elsewhere)
                break
            except EngineError as error:
                if time.monotonic() > deadline:
                    raise DeploymentError(
                        f"{each.name} at {each.url} could not be registered: {' '.join(str(error).split())}"
                    ) from error
            await asyncio.sleep(_POLL)
    return registered


async def failing_calls(admin: AdminClient) -> list[str]:
    """Return the calls among the registered services that would fail, one sentence each.

    Raises:
        EngineError: The engine does not answer.
    """
    return [problem.text for problem in Catalog(await admin.services()).problems()]


async def _register_one(admin: AdminClient, wanted: Registration, elsewhere: Elsewhere) -> list[str]:
    services = await admin.discover(wanted.url, use_http_11=wanted.http1)
    names = {str(each["name"]) for each in services}
    if missing := sorted(set(wanted.serves) - names):
        raise DeploymentError(
            f"{wanted.name} at {wanted.url} could not be registered: "
            f"expected {', '.join(missing)}, but it serves {', '.join(sorted(names)) or 'nothing'}"
        )
    others = [
        deployment
        for deployment in await admin.deployments()
        if names & _names(deployment) and _url(deployment) != wanted.url.rstrip("/")
    ]
    if elsewhere == "refuse":
        await _refuse_displacement(admin, others, wanted, names)
    elif elsewhere != "replace":
        await _refuse_other_platform(admin, others, wanted, services)
    if elsewhere == "move":
        for deployment in others:
            await admin.move_deployment(deployment["id"], wanted.url)
    return sorted(await admin.register(wanted.url, use_http_11=wanted.http1))


async def _refuse_displacement(
    admin: AdminClient, others: Sequence[Mapping[str, Any]], wanted: Registration, names: set[str]
) -> None:
    """Refuse to take over services of a deployment at another address."""
    current = {each["name"]: each["deployment_id"] for each in await admin.services()}
    for other in others:
        if taken := sorted(name for name in names & _names(other) if current.get(name) == other["id"]):
            also = sorted(_names(other) - names)
            rest = f", with {', '.join(also)}, which {wanted.url} does not serve" if also else ""
            raise DeploymentError(
                f"{wanted.name} is not registered: {', '.join(taken)} already runs at {_url(other)}{rest}. If "
                f"{wanted.url} is its new version or place, repeat with --replace; otherwise use another engine"
            )


async def _refuse_other_platform(
    admin: AdminClient, others: Sequence[Mapping[str, Any]], wanted: Registration, services: list[dict[str, Any]]
) -> None:
    """Refuse a service that would take over the work of another platform, before the engine knows it."""
    new = {"uri": wanted.url, "services": services}
    for each in others:
        if SINGLETONS & _names(each) and (problem := next(conflicts([await admin.deployment(each["id"]), new]), None)):
            raise DeploymentError(f"{wanted.name} at {wanted.url} is not registered: {problem}")


async def deployments(admin: AdminClient) -> list[Deployment]:
    """Return the registered deployments, oldest first.

    Raises:
        EngineError: The engine does not answer.
    """
    current = {each["name"]: each["deployment_id"] for each in await admin.services()}
    rows = await admin.query(
        "select pinned_deployment_id as id, count(*) as open from sys_invocation_status "
        "where status != 'completed' and pinned_deployment_id is not null group by pinned_deployment_id"
    )
    counts = {row["id"]: int(row["open"]) for row in rows}
    found = [
        Deployment(
            id=each["id"],
            url=_url(each),
            services=sorted(_names(each)),
            current=sorted(name for name in _names(each) if current.get(name) == each["id"]),
            open_invocations=counts.get(each["id"], 0),
            created_at=each.get("created_at"),
        )
        for each in await admin.deployments()
    ]
    return sorted(found, key=lambda each: (str(each.created_at), each.id))


async def old_versions(admin: AdminClient, services: Collection[str] = ()) -> list[Deployment]:
    """Return the deployments that newer ones have replaced, and that receive no new invocations.

    Args:
        admin: Client of the admin API.
        services: Only deployments of these services; empty for all.

    Raises:
        EngineError: The engine does not answer.
    """
    return [
        each
        for each in await deployments(admin)
        if not each.current and (not services or set(services) & set(each.services))
    ]


async def drain(
    admin: AdminClient,
    services: Collection[str] = (),
    *,
    name: str = "",
    timeout: timedelta,
    report: Callable[[str], None],
) -> list[str]:
    """Wait until old versions have no open invocations, and remove their deployments.

    Args:
        admin: Client of the admin API.
        services: Only old versions of these services; empty for all.
        name: Name of the services, for messages.
        timeout: How long to wait. A saga that waits for an approval may take days.
        report: Receives a line per change.

    Returns:
        Addresses of the removed deployments. Their processes can be stopped.

    Raises:
        DeploymentError: An old version still has open invocations at the timeout. Draining can be repeated.
        EngineError: The engine does not answer.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    removed: list[str] = []
    reported: dict[str, int] = {}
    while versions := await old_versions(admin, services):
        for version in versions:
            if version.open_invocations == 0:
                await admin.remove_deployment(version.id)
                removed.append(version.url)
                report(f"removed the deployment at {version.url}")
        waited_for = {each.url: each.open_invocations for each in versions if each.open_invocations}
        if waited_for and waited_for != reported:
            report("; ".join(f"{url} still has {number} open invocations" for url, number in waited_for.items()))
            reported = waited_for
        if waited_for:
            if time.monotonic() > deadline:
                raise DeploymentError(
                    f"{f'{name}: ' if name else ''}{', '.join(waited_for)} still has open invocations after "
                    f"{timeout.total_seconds():g} s: keep it running, and drain again later"
                )
            await asyncio.sleep(_DRAIN_POLL)
    return removed


async def forget(admin: AdminClient, name: str, *, force: bool = False) -> Deployment:
    """Remove a deployment from the engine.

    Args:
        admin: Client of the admin API.
        name: Address or ID of the deployment.
        force: Remove it although it is in use: its services vanish, and its open invocations never continue.

    Raises:
        DeploymentError: There is no such deployment, or it is in use.
        EngineError: The engine does not answer.
    """
    known = await deployments(admin)
    found = next((each for each in known if name.rstrip("/") in (each.id, each.url)), None)
    if found is None:
        urls = ", ".join(each.url for each in known) or "none"
        raise DeploymentError(f"there is no deployment '{name}'; the engine has {urls}")
    if not force and (found.current or found.open_invocations):
        uses = [
            f"receives the invocations of {', '.join(found.current)}" if found.current else "",
            f"has {found.open_invocations} open invocations" if found.open_invocations else "",
        ]
        raise DeploymentError(
            f"the deployment at {found.url} {' and '.join(filter(None, uses))}: register a newer version and drain it, "
            "or pass --force"
        )
    await admin.remove_deployment(found.id)
    return found


def _names(deployment: Mapping[str, Any]) -> set[str]:
    return {str(service["name"]) for service in deployment["services"]}


def _url(deployment: Mapping[str, Any]) -> str:
    return str(deployment["uri"]).rstrip("/")

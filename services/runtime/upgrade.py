"""Drain old versions of a service.

An invocation stays on the deployment that it started on. A new version therefore needs its own address: new
invocations go there once it is registered, and the old process runs until its last invocation has completed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from perdure.dev.processes import ProcessError
from perdure.engine.admin import AdminClient
from services.runtime.topology import ServiceSpec

_POLL: Final = 0.5


@dataclass(frozen=True)
class OldVersion:
    """A deployment that receives no new invocations.

    Args:
        id: Deployment id.
        url: Address of the deployment.
        open: Number of its invocations that have not completed.
    """

    id: str
    url: str
    open: int


async def old_versions(admin: AdminClient, spec: ServiceSpec) -> list[OldVersion]:
    """Return the deployments of a service that a newer one has replaced.

    Args:
        admin: Client of the admin API.
        spec: The service.

    Raises:
        EngineError: The engine does not answer.
    """
    current = {each["name"]: each["deployment_id"] for each in await admin.services()}
    replaced = [
        deployment
        for deployment in await admin.deployments()
        if (names := {each["name"] for each in deployment["services"]} & set(spec.serves))
        and not any(current.get(name) == deployment["id"] for name in names)
    ]
    if not replaced:
        return []
    rows = await admin.query(
        "select pinned_deployment_id as id, count(*) as open from sys_invocation_status "
        "where status != 'completed' and pinned_deployment_id is not null group by pinned_deployment_id"
    )
    counts = {row["id"]: int(row["open"]) for row in rows}
    return [OldVersion(each["id"], _url(each), counts.get(each["id"], 0)) for each in replaced]


async def drain(
    admin: AdminClient, spec: ServiceSpec, *, timeout: timedelta, report: Callable[[str], None]
) -> list[str]:
    """Wait until the old versions of a service have no open invocations, and remove their deployments.

    Args:
        admin: Client of the admin API.
        spec: The service.
        timeout: How long to wait. A saga that waits for an approval may take days.
        report: Receives a line per change.

    Returns:
        Addresses of the removed deployments. Their processes can be stopped.

    Raises:
        ProcessError: An old version still has open invocations at the timeout. Draining can be repeated.
        EngineError: The engine does not answer.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    removed: list[str] = []
    reported: list[OldVersion] = []
    while versions := await old_versions(admin, spec):
        for version in versions:
            if version.open == 0:
                await admin.remove_deployment(version.id)
                removed.append(version.url)
                report(f"removed the deployment at {version.url}")
        waited_for = [version for version in versions if version.open]
        if waited_for and waited_for != reported:
            report("; ".join(f"{each.url} still has {each.open} open invocations" for each in waited_for))
            reported = waited_for
        if waited_for:
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"{spec.name}: {', '.join(each.url for each in waited_for)} still has open invocations after "
                    f"{timeout.total_seconds():g} s: keep it running, and drain again later"
                )
            await asyncio.sleep(_POLL)
    return removed


def _url(deployment: dict[str, Any]) -> str:
    return str(deployment["uri"]).rstrip("/")

"""A new version of a service beside the old one: registered, watched while the old one drains, and the old one removed.

An invocation stays with the deployment that it began on, whose code its journal was written by. So the new version is
served at an address of its own, and new invocations go there as soon as it is registered; the old process stays until
the last invocation that began on it has ended.
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

_LOOK: Final = 0.5


@dataclass(frozen=True)
class OldVersion:
    """A deployment that no new invocation goes to.

    Args:
        id: Its id with the engine.
        url: Where it is served.
        open: How many invocations that began on it have not ended.
    """

    id: str
    url: str
    open: int


async def old_versions(admin: AdminClient, spec: ServiceSpec) -> list[OldVersion]:
    """Return the deployments of a service that newer ones have taken the place of.

    Args:
        admin: The engine.
        spec: The service.

    Raises:
        EngineError: The engine doesn't answer.
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


async def drain(admin: AdminClient, spec: ServiceSpec, *, within: timedelta, tell: Callable[[str], None]) -> list[str]:
    """Wait until nothing needs the old versions of a service any more, and have the engine forget them.

    Args:
        admin: The engine.
        spec: The service.
        within: How long to wait; a saga that waits for an approval may take days.
        tell: Is told what is being waited for, when it changes.

    Returns:
        Where the old versions were served; their processes can be stopped now.

    Raises:
        ProcessError: Something still needs one when time is over. Nothing is lost: drain again later.
        EngineError: The engine doesn't answer.
    """
    give_up = time.monotonic() + within.total_seconds()
    removed: list[str] = []
    told: list[OldVersion] = []
    while versions := await old_versions(admin, spec):
        for version in versions:
            if version.open == 0:
                await admin.remove_deployment(version.id)
                removed.append(version.url)
                tell(f"{version.url} is not needed any more; the engine has forgotten it")
        waited_for = [version for version in versions if version.open]
        if waited_for and waited_for != told:
            tell("; ".join(f"{each.url} still has {each.open} open invocations" for each in waited_for))
            told = waited_for
        if waited_for:
            if time.monotonic() > give_up:
                raise ProcessError(
                    f"{spec.name}: {', '.join(each.url for each in waited_for)} is still needed after "
                    f"{within.total_seconds():g} s: let it run, and drain again later"
                )
            await asyncio.sleep(_LOOK)
    return removed


def _url(deployment: dict[str, Any]) -> str:
    return str(deployment["uri"]).rstrip("/")

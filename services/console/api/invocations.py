"""Invocations, services and schedules."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from perdure._runtime.plain_text import Reason
from services.console.api.errors import ENGINE
from services.console.api.sagas import PageNumber
from services.console.guard.access import Operator, Viewer
from services.console.parts import EngineOf, PartsOf
from services.console.reads import invocations, schedules, services
from services.console.reads.invocations import Invocation, InvocationSteer
from services.console.reads.schedules import Schedule, Schedules, ScheduleSteer
from services.console.reads.services import Services

router = APIRouter(prefix="/api", responses=ENGINE)

InvocationId = Annotated[str, Path(max_length=200)]
ScheduleName = Annotated[str, Path(max_length=128)]


class Invocations(BaseModel):
    """Some invocations, the oldest first."""

    items: list[Invocation]


class Steering(BaseModel):
    """What goes with steering an invocation.

    Args:
        reason: Why.
    """

    model_config = ConfigDict(extra="forbid")

    reason: Reason = ""


class ScheduleSteering(Steering):
    """What goes with steering a schedule.

    Args:
        reason: Why.
        shown: `shown` of the schedule as it was looked at; refused when it has changed since.
    """

    shown: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


@router.get("/invocations", operation_id="list_invocations", tags=["invocations"])
async def list_invocations(
    _: Viewer,
    engine: EngineOf,
    search: Annotated[str, Query(max_length=200, description="Part of the target or of the id.")] = "",
    *,
    stuck: Annotated[bool, Query(description="Only those that are paused, or fail and are tried again.")] = False,
) -> Invocations:
    """List invocations that have not ended."""
    if stuck:
        found = [each for each in await invocations.stuck(engine) if search in each.target or search in each.id]
        return Invocations(items=found)
    return Invocations(items=await invocations.under_way(engine, search))


@router.post(
    "/invocations/{invocation_id}/{steer}", status_code=204, operation_id="steer_invocation", tags=["invocations"]
)
async def steer_invocation(
    invocation_id: InvocationId, steer: InvocationSteer, what: Steering, signed_in: Operator, found: PartsOf
) -> None:
    """Resume an invocation that is paused, cancel or kill one."""
    await invocations.steer(
        found.engine, found.persons, invocation_id, steer, actor=signed_in.person.name, reason=what.reason
    )


@router.get("/services", operation_id="list_services", tags=["services"])
async def list_services(_: Viewer, engine: EngineOf) -> Services:
    """List deployments, services and their handlers."""
    return await services.read(engine)


@router.get("/schedules", operation_id="list_schedules", tags=["schedules"])
async def list_schedules(_: Viewer, engine: EngineOf, page: PageNumber = 1) -> Schedules:
    """List schedules, by name."""
    return await schedules.page(engine, page)


@router.get("/schedules/{name:path}", operation_id="show_schedule", tags=["schedules"])
async def show_schedule(name: ScheduleName, _: Viewer, engine: EngineOf) -> Schedule:
    """Show a schedule."""
    return await schedules.one(engine, name)


@router.post("/schedules/{name:path}/{steer}", operation_id="steer_schedule", tags=["schedules"])
async def steer_schedule(
    name: ScheduleName, steer: ScheduleSteer, what: ScheduleSteering, signed_in: Operator, found: PartsOf
) -> Schedule:
    """Pause or resume a schedule, start a run of it now, or remove it."""
    return await schedules.steer(
        found.engine, found.signer, signed_in, name, steer, reason=what.reason, shown=what.shown
    )

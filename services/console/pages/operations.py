"""Invocations, services and schedules."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, Response

from services.console.api.invocations import InvocationId, ScheduleName
from services.console.api.sagas import PageNumber
from services.console.guard.access import Operator, Viewer
from services.console.pages.approvals import ReasonText
from services.console.pages.render import done, page
from services.console.parts import EngineOf, PartsOf
from services.console.problems import ConsoleError
from services.console.reads import invocations, schedules, services
from services.console.reads.invocations import InvocationSteer
from services.console.reads.schedules import ScheduleSteer

router = APIRouter()

DONE = {
    "resume": "resumed",
    "cancel": "asked to end",
    "kill": "killed",
    "pause": "paused",
    "trigger": "started a run of",
    "remove": "removed",
}


@router.get("/invocations")
async def list_invocations(
    request: Request,
    signed_in: Viewer,
    engine: EngineOf,
    search: Annotated[str, Query(max_length=200)] = "",
) -> HTMLResponse:
    """List what is stuck, and what is under way."""
    stuck = await invocations.stuck(engine)
    under_way = await invocations.under_way(engine, search)
    return await page(
        request,
        signed_in,
        "invocations.html",
        stuck=stuck,
        under_way=under_way,
        search=search,
        most=invocations.MOST,
    )


@router.post("/alerts/{invocation_id}/{steer}")
@router.post("/invocations/{invocation_id}/{steer}")
async def steer_invocation(
    invocation_id: InvocationId,
    steer: InvocationSteer,
    request: Request,
    signed_in: Operator,
    found: PartsOf,
    reason: ReasonText = "",
) -> Response:
    """Resume an invocation that is paused, cancel or kill one; then show the page on which it was asked again."""
    actor = signed_in.person.name
    await invocations.steer(found.engine, found.persons, invocation_id, steer, actor=actor, reason=reason)
    asked_on = request.url.path.split("/")[1]
    return await done(request, signed_in, f"{DONE[steer]}: {invocation_id}", f"/{asked_on}")


@router.get("/services")
async def list_services(request: Request, signed_in: Viewer, engine: EngineOf) -> HTMLResponse:
    """List deployments, services and their handlers."""
    return await page(request, signed_in, "services.html", found=await services.read(engine))


@router.get("/schedules")
async def list_schedules(
    request: Request,
    signed_in: Viewer,
    engine: EngineOf,
    number: Annotated[PageNumber, Query(alias="page")] = 1,
) -> HTMLResponse:
    """List schedules."""
    try:
        found, missing = await schedules.page(engine, number), ""
    except ConsoleError as error:
        if error.problem.code != "not_deployed":
            raise
        found, missing = None, error.message
    return await page(request, signed_in, "schedules.html", found=found, missing=missing)


@router.post("/schedules/{name:path}/{steer}")
async def steer_schedule(
    name: ScheduleName,
    steer: ScheduleSteer,
    request: Request,
    signed_in: Operator,
    found: PartsOf,
    reason: ReasonText = "",
    shown: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """Pause or resume a schedule, start a run of it now, or remove it."""
    await schedules.steer(found.engine, found.signer, signed_in, name, steer, reason=reason, shown=shown)
    return await done(request, signed_in, f"{DONE[steer]} {name}", "/schedules")

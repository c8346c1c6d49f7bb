"""Routes for schedules."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Form, Path, Request
from fastapi.responses import HTMLResponse, Response

from services.console.dependencies import (
    ComponentsDep,
    EngineDep,
    Operator,
    PageNumber,
    PageQuery,
    ReasonField,
    Viewer,
)
from services.console.problems import ENGINE_ERRORS, ConsoleError
from services.console.rendering import page, redirect
from services.console.schedules import service
from services.console.schedules.schemas import ActionName, Schedule, ScheduleActionInput, SchedulePage

api = APIRouter(prefix="/api/schedules", tags=["schedules"], responses=ENGINE_ERRORS)
pages = APIRouter(prefix="/schedules")

ScheduleName = Annotated[str, Path(max_length=128)]
_NOTICES: Final[dict[ActionName, str]] = {
    "pause": "Schedule {} paused.",
    "resume": "Schedule {} resumed.",
    "trigger": "Run of schedule {} started.",
    "remove": "Schedule {} removed.",
}


@api.get("", operation_id="list_schedules")
async def list_all(_: Viewer, engine: EngineDep, page: PageNumber = 1) -> SchedulePage:
    """List schedules, by name."""
    return await service.list_page(engine, page)


@api.get("/{name:path}", operation_id="show_schedule")
async def show(name: ScheduleName, _: Viewer, engine: EngineDep) -> Schedule:
    """Return a schedule."""
    return await service.get(engine, name)


@api.post("/{name:path}/{action}", operation_id="act_on_schedule")
async def act(
    name: ScheduleName, action: ActionName, body: ScheduleActionInput, session: Operator, components: ComponentsDep
) -> Schedule:
    """Pause, resume, trigger or remove a schedule."""
    return await service.act(components, session, name, action, reason=body.reason, digest=body.digest)


@pages.get("")
async def list_page(request: Request, session: Viewer, engine: EngineDep, number: PageQuery = 1) -> HTMLResponse:
    """Show schedules."""
    try:
        listing, missing = await service.list_page(engine, number), ""
    except ConsoleError as error:
        if error.problem.code != "not_deployed":
            raise
        listing, missing = None, error.message
    return await page(request, session, "schedules.html", listing=listing, missing=missing)


@pages.post("/{name:path}/{action}")
async def submit_action(
    name: ScheduleName,
    action: ActionName,
    request: Request,
    session: Operator,
    components: ComponentsDep,
    reason: ReasonField = "",
    digest: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """Pause, resume, trigger or remove a schedule, as shown on the page."""
    await service.act(components, session, name, action, reason=reason, digest=digest)
    return await redirect(request, session, "/schedules", _NOTICES[action].format(name))

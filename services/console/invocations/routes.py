"""Routes for invocations."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse, Response

from services.console.dependencies import ComponentsDep, EngineDep, Operator, ReasonField, Viewer
from services.console.invocations import service
from services.console.invocations.schemas import ActionName, InvocationActionInput, InvocationList
from services.console.problems import ENGINE_ERRORS
from services.console.rendering import page, redirect

api = APIRouter(prefix="/api/invocations", tags=["invocations"], responses=ENGINE_ERRORS)
pages = APIRouter()

InvocationId = Annotated[str, Path(max_length=200)]
_NOTICES: Final[dict[ActionName, str]] = {
    "resume": "Invocation resumed: {}",
    "cancel": "Cancellation requested: {}",
    "kill": "Invocation killed: {}",
}


@api.get("", operation_id="list_invocations")
async def list_all(
    _: Viewer,
    engine: EngineDep,
    search: Annotated[str, Query(max_length=200, description="Part of the target or ID.")] = "",
    *,
    stuck: Annotated[bool, Query(description="Only invocations that are paused or fail repeatedly.")] = False,
) -> InvocationList:
    """List invocations that have not ended."""
    if stuck:
        items = [one for one in await service.list_stuck(engine) if search in one.target or search in one.id]
        return InvocationList(items=items)
    return InvocationList(items=await service.list_open(engine, search))


@api.post("/{invocation_id}/{action}", status_code=204, operation_id="act_on_invocation")
async def act(
    invocation_id: InvocationId,
    action: ActionName,
    body: InvocationActionInput,
    session: Operator,
    components: ComponentsDep,
) -> None:
    """Resume, cancel or kill an invocation."""
    await service.act(components, session, invocation_id, action, body.reason)


@pages.get("/invocations")
async def list_page(
    request: Request, session: Viewer, engine: EngineDep, search: Annotated[str, Query(max_length=200)] = ""
) -> HTMLResponse:
    """Show stuck and open invocations."""
    return await page(
        request,
        session,
        "invocations.html",
        stuck=await service.list_stuck(engine),
        open=await service.list_open(engine, search),
        search=search,
        max_items=service.MAX_ITEMS,
    )


@pages.post("/alerts/{invocation_id}/{action}")
@pages.post("/invocations/{invocation_id}/{action}")
async def submit_action(
    invocation_id: InvocationId,
    action: ActionName,
    request: Request,
    session: Operator,
    components: ComponentsDep,
    reason: ReasonField = "",
) -> Response:
    """Resume, cancel or kill an invocation, then return to the page of the form."""
    await service.act(components, session, invocation_id, action, reason)
    origin = request.url.path.split("/")[1]
    return await redirect(request, session, f"/{origin}", _NOTICES[action].format(invocation_id))

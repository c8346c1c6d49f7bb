"""Routes for held steps."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import AwareDatetime

from perdure.saga.held_step_messages import (
    HeldStepAction,
    HeldStepBulkReceipt,
    HeldStepDetail,
    HeldStepFilter,
    HeldStepListRequest,
    HeldStepPage,
    HeldStepReceipt,
)
from services.console.auth.users import utc_now
from services.console.dead_letters import payloads
from services.console.dependencies import ComponentsDep, EngineDep, Operator, ReasonField, Viewer
from services.console.formatting import quote_path
from services.console.held_steps import service
from services.console.held_steps.schemas import HeldStepActionInput, HeldStepBulkInput
from services.console.problems import ENGINE_ERRORS, invalid
from services.console.rendering import page, redirect

api = APIRouter(prefix="/api/held-steps", tags=["held steps"], responses=ENGINE_ERRORS)
pages = APIRouter(prefix="/held-steps")

PAGE_SIZE: Final = 50
_PAST: Final = {
    HeldStepAction.RETRY: "retried",
    HeldStepAction.COMPLETE: "completed",
    HeldStepAction.ROLL_BACK: "rolled back",
}
FilterQuery = Annotated[str, Query(max_length=500)]
FilterField = Annotated[str, Form(max_length=500)]
JsonField = Annotated[str, Form(max_length=1_000_000)]


@api.get("", operation_id="list_held_steps")
async def list_all(_: Viewer, engine: EngineDep, request: Annotated[HeldStepListRequest, Query()]) -> HeldStepPage:
    """List held steps, oldest first, and the groups by error."""
    return await service.list_page(engine, request)


@api.post("", operation_id="act_on_held_steps")
async def act_on_many(body: HeldStepBulkInput, session: Operator, components: ComponentsDep) -> HeldStepBulkReceipt:
    """Act on all held steps that match a filter."""
    return await service.act_on_many(components, session, body)


@api.post("/{held_step_id:path}/{action}", operation_id="act_on_held_step")
async def act(
    held_step_id: str, action: HeldStepAction, body: HeldStepActionInput, session: Operator, components: ComponentsDep
) -> HeldStepReceipt:
    """Retry or complete a held step, or roll its saga back."""
    return await service.act(components, session, held_step_id, action, body)


@api.get("/{held_step_id:path}", operation_id="show_held_step")
async def show(held_step_id: str, _: Viewer, engine: EngineDep) -> HeldStepDetail:
    """Return a held step with its audit log."""
    return await service.get(engine, held_step_id)


@pages.get("")
async def list_page(
    request: Request,
    session: Viewer,
    engine: EngineDep,
    saga: FilterQuery = "",
    service_name: Annotated[FilterQuery, Query(alias="service")] = "",
    step: FilterQuery = "",
    signature: FilterQuery = "",
    after: Annotated[str, Query(max_length=2000)] = "",
) -> HTMLResponse:
    """Show held steps, oldest first, and the groups by error."""
    filters = {"saga": saga, "service": service_name, "step": step, "signature": signature}
    query = HeldStepListRequest(
        saga_id=saga or None,
        service=service_name or None,
        step=step or None,
        signature=signature or None,
        after=after or None,
        limit=PAGE_SIZE,
    )
    shown_at = utc_now()
    return await page(
        request,
        session,
        "held_steps.html",
        listing=await service.list_page(engine, query),
        filters=filters,
        active_filters={name: value for name, value in filters.items() if value},
        shown_at=shown_at.isoformat(),
    )


@pages.post("")
async def submit_bulk_action(
    request: Request,
    session: Operator,
    components: ComponentsDep,
    action: Annotated[HeldStepAction, Form()],
    before: Annotated[AwareDatetime, Form()],
    saga: FilterField = "",
    service_name: Annotated[FilterField, Form(alias="service")] = "",
    step: FilterField = "",
    signature: FilterField = "",
    reason: ReasonField = "",
) -> Response:
    """Act on a group of held steps with the same error that failed before the page was shown."""
    if not signature:
        raise invalid("no group selected; reload the page")
    wanted = HeldStepFilter(
        saga_id=saga or None,
        service=service_name or None,
        step=step or None,
        signature=signature,
        before=before,
    )
    receipt = await service.act_on_many(
        components, session, HeldStepBulkInput(action=action, filter=wanted, reason=reason)
    )
    rejected = f"; {len(receipt.refused)} rejected: {next(iter(receipt.refused.values()))}" if receipt.refused else ""
    return await redirect(request, session, "/held-steps", f"{len(receipt.done)} {_PAST[action]}{rejected}")


@pages.post("/{held_step_id:path}/{action}")
async def submit_action(
    held_step_id: str,
    action: HeldStepAction,
    request: Request,
    session: Operator,
    components: ComponentsDep,
    since: Annotated[AwareDatetime, Form()],
    reason: ReasonField = "",
    payload: JsonField = "",
    result: JsonField = "",
) -> Response:
    """Retry or complete a held step, or roll its saga back."""
    body = HeldStepActionInput(
        reason=reason,
        payload=payloads.parse(payload) if payload and action is HeldStepAction.RETRY else None,
        result=payloads.parse(result) if result.strip() not in ("", "null") else None,
        since=since,
    )
    await service.act(components, session, held_step_id, action, body)
    saga_id = held_step_id.rpartition("/")[0]
    notice = f"Held step {held_step_id} {_PAST[action]}."
    return await redirect(request, session, f"/sagas/{quote_path(saga_id)}", notice)


@pages.get("/{held_step_id:path}")
async def show_page(held_step_id: str, request: Request, session: Viewer, engine: EngineDep) -> HTMLResponse:
    """Show a held step with its audit log."""
    detail = await service.get(engine, held_step_id)
    text = await asyncio.to_thread(payloads.format_payload, detail.step.payload)
    since: datetime = detail.step.since
    return await page(request, session, "held_step.html", detail=detail, payload=text, since=since.isoformat())

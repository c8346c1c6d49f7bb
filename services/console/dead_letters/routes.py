"""Routes for dead letters."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, Response

from perdure.saga.messages import (
    ActionReceipt,
    BulkActionReceipt,
    DeadLetterFilter,
    DeadLetterListRequest,
    DeadLetterPage,
)
from perdure.saga.schema import OperatorAction
from services.console.auth.roles import Role, is_permitted
from services.console.dead_letters import payloads, service
from services.console.dead_letters.payloads import DiffLine
from services.console.dead_letters.schemas import (
    MAX_BULK,
    BulkActionInput,
    DeadLetterActionInput,
    DeadLetterDetail,
    NewPayload,
    RedriveCount,
)
from services.console.dependencies import ComponentsDep, EngineDep, Operator, PageQuery, ReasonField, Viewer
from services.console.formatting import quote_path
from services.console.problems import ENGINE_ERRORS, invalid
from services.console.rendering import page, redirect

api = APIRouter(prefix="/api/dead-letters", tags=["dead letters"], responses=ENGINE_ERRORS)
pages = APIRouter(prefix="/dead-letters")

PAGE_SIZE: Final = 50
_PAST: Final = {
    OperatorAction.REDRIVE: "redriven",
    OperatorAction.SKIP: "skipped",
    OperatorAction.RESOLVE: "resolved",
    OperatorAction.DISCARD: "discarded",
    OperatorAction.ANNOTATE: "annotated",
}
FilterQuery = Annotated[str, Query(max_length=500)]
FilterField = Annotated[str, Form(max_length=500)]
PayloadField = Annotated[str, Form(max_length=1_000_000)]


@api.get("", operation_id="list_dead_letters")
async def list_all(_: Viewer, engine: EngineDep, request: Annotated[DeadLetterListRequest, Query()]) -> DeadLetterPage:
    """List dead letters, oldest first, and the groups by error."""
    return await service.list_page(engine, request)


@api.post("", operation_id="act_on_dead_letters")
async def act_on_many(body: BulkActionInput, session: Operator, components: ComponentsDep) -> BulkActionReceipt:
    """Act on all dead letters that match a filter."""
    digest = None if body.letters is None else service.letters_digest(body.letters)
    return await service.act_on_many(components, session, body.action, body.filter, reason=body.reason, digest=digest)


@api.post("/{letter_id:path}/compare", operation_id="compare_payload")
async def compare(letter_id: str, new: NewPayload, _: Operator, engine: EngineDep) -> list[DiffLine]:
    """Return the diff from the current payload to another one. Changes nothing."""
    _letter, lines = await service.compare(engine, letter_id, new.payload)
    return lines


@api.post("/{letter_id:path}/{action}", operation_id="act_on_dead_letter")
async def act(
    letter_id: str, action: OperatorAction, body: DeadLetterActionInput, session: Operator, components: ComponentsDep
) -> ActionReceipt:
    """Redrive, skip, resolve, discard or annotate a dead letter."""
    return await service.act(components, session, letter_id, action, body)


@api.get("/{letter_id:path}", operation_id="show_dead_letter")
async def show(letter_id: str, _: Viewer, engine: EngineDep) -> DeadLetterDetail:
    """Return a dead letter with its audit log."""
    return await service.get(engine, letter_id)


@pages.get("")
async def list_page(
    request: Request,
    session: Viewer,
    engine: EngineDep,
    saga: FilterQuery = "",
    service_name: Annotated[FilterQuery, Query(alias="service")] = "",
    step: FilterQuery = "",
    signature: FilterQuery = "",
    number: PageQuery = 1,
) -> HTMLResponse:
    """Show dead letters, oldest first, and the groups by error."""
    filters = {"saga": saga, "service": service_name, "step": step, "signature": signature}
    query = DeadLetterListRequest(
        saga_id=saga or None,
        service=service_name or None,
        step=step or None,
        signature=signature or None,
        page=number,
        page_size=PAGE_SIZE,
    )
    if is_permitted(session.user.roles, Role.OPERATOR):
        listing, digests = await service.list_page_with_digests(engine, query)
    else:
        listing, digests = await service.list_page(engine, query), {}
    return await page(
        request,
        session,
        "dead_letters.html",
        listing=listing,
        digests=digests,
        filters=filters,
        active_filters={name: value for name, value in filters.items() if value},
        actions=list(OperatorAction),
        max_bulk=MAX_BULK,
    )


@pages.post("")
async def submit_bulk_action(
    request: Request,
    session: Operator,
    components: ComponentsDep,
    action: Annotated[OperatorAction, Form()],
    saga: FilterField = "",
    service_name: Annotated[FilterField, Form(alias="service")] = "",
    step: FilterField = "",
    signature: FilterField = "",
    reason: ReasonField = "",
    digest: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """Act on a group of dead letters with the same error, as shown on the page."""
    if not signature:
        raise invalid("no group selected; reload the page")
    criteria = DeadLetterFilter(
        saga_id=saga or None, service=service_name or None, step=step or None, signature=signature
    )
    receipt = await service.act_on_many(components, session, action, criteria, reason=reason, digest=digest)
    rejected = f"; {len(receipt.refused)} rejected: {next(iter(receipt.refused.values()))}" if receipt.refused else ""
    return await redirect(request, session, "/dead-letters", f"{len(receipt.done)} {_PAST[action]}{rejected}")


@pages.post("/{letter_id:path}/compare")
async def compare_page(
    letter_id: str, request: Request, session: Operator, engine: EngineDep, payload: PayloadField = ""
) -> HTMLResponse:
    """Show the diff from the current payload to an edited one, before a redrive."""
    edited = payloads.parse(payload)
    letter, lines = await service.compare(engine, letter_id, edited)
    text = await asyncio.to_thread(payloads.format_payload, edited)
    return await page(request, session, "compare.html", letter=letter, lines=lines, edited=text)


@pages.post("/{letter_id:path}/{action}")
async def submit_action(
    letter_id: str,
    action: OperatorAction,
    request: Request,
    session: Operator,
    components: ComponentsDep,
    reason: ReasonField = "",
    payload: PayloadField = "",
    redriven: Annotated[RedriveCount | None, Form()] = None,
) -> Response:
    """Redrive, skip, resolve, discard or annotate a dead letter."""
    new = payloads.parse(payload) if payload and action is OperatorAction.REDRIVE else None
    body = DeadLetterActionInput(reason=reason, payload=new, redriven=redriven)
    receipt = await service.act(components, session, letter_id, action, body)
    saga_id = letter_id.rpartition("/")[0]
    stays = action is OperatorAction.ANNOTATE
    path = f"/dead-letters/{quote_path(letter_id)}" if stays else f"/sagas/{quote_path(saga_id)}"
    notice = f"Dead letter {receipt.id} {_PAST[action]}. State of the step: {receipt.state.value.replace('_', ' ')}."
    return await redirect(request, session, path, notice)


@pages.get("/{letter_id:path}")
async def show_page(letter_id: str, request: Request, session: Viewer, engine: EngineDep) -> HTMLResponse:
    """Show a dead letter with its audit log."""
    detail = await service.get(engine, letter_id)
    text = await asyncio.to_thread(payloads.format_payload, detail.letter.payload)
    return await page(
        request, session, "dead_letter.html", letter=detail.letter, audit_log=detail.audit_log, payload=text
    )

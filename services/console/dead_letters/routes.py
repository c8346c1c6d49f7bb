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
from services.console.dead_letters import payloads, service
from services.console.dead_letters.payloads import DiffLine
from services.console.dead_letters.schemas import (
    BulkActionInput,
    DeadLetterActionInput,
    DeadLetterDetail,
    NewPayload,
    RedriveCount,
)
from services.console.dependencies import ComponentsDep, EngineDep, Operator, ReasonField, Viewer
from services.console.formatting import quote_path
from services.console.problems import ENGINE_ERRORS, invalid
from services.console.rendering import page, redirect

api = APIRouter(prefix="/api/dead-letters", tags=["dead letters"], responses=ENGINE_ERRORS)
pages = APIRouter(prefix="/dead-letters")

PAGE_SIZE: Final = 50
_SHOWN_REFUSALS: Final = 20
_PAST: Final = {
    OperatorAction.REDRIVE: "redriven",
    OperatorAction.SKIP: "skipped",
    OperatorAction.RESOLVE: "resolved",
    OperatorAction.DISCARD: "discarded",
    OperatorAction.ANNOTATE: "annotated",
}
FilterQuery = Annotated[str, Query(max_length=500)]
CursorQuery = Annotated[str, Query(max_length=8_000)]
CursorField = Annotated[str, Form(max_length=8_000)]
FilterField = Annotated[str, Form(max_length=500)]
PayloadField = Annotated[str, Form(max_length=1_000_000)]


@api.get("", operation_id="list_dead_letters")
async def list_all(_: Viewer, engine: EngineDep, request: Annotated[DeadLetterListRequest, Query()]) -> DeadLetterPage:
    """List dead letters, oldest first, and the groups by error."""
    return await service.list_page(engine, request)


@api.post("", operation_id="act_on_dead_letters")
async def act_on_many(body: BulkActionInput, session: Operator, components: ComponentsDep) -> BulkActionReceipt:
    """Act on a batch of at most 100 dead letters that match a filter."""
    return await service.act_on_many(components, session, body)


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
    after: CursorQuery = "",
) -> HTMLResponse:
    """Show dead letters, oldest first, and the groups by error."""
    filters = {"saga": saga, "service": service_name, "step": step, "signature": signature}
    query = DeadLetterListRequest(
        saga_id=saga or None,
        service=service_name or None,
        step=step or None,
        signature=signature or None,
        page_size=PAGE_SIZE,
        after=after or None,
    )
    return await page(
        request,
        session,
        "dead_letters.html",
        listing=await service.list_page(engine, query),
        filters=filters,
        active_filters={name: value for name, value in filters.items() if value},
        actions=list(OperatorAction),
        after=after,
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
    after: CursorField = "",
    until: CursorField = "",
    done: Annotated[int, Form(ge=0)] = 0,
    refused: Annotated[int, Form(ge=0)] = 0,
) -> Response:
    """Act on a group of dead letters with the same error, as shown on the page, and show the progress of its batches.

    The page of a batch sends the next one, so that a request acts on a bounded number.
    """
    if not signature:
        raise invalid("no group selected; reload the page")
    criteria = DeadLetterFilter(
        saga_id=saga or None, service=service_name or None, step=step or None, signature=signature
    )
    # The first batch acts on the group as shown, and the others on its rest.
    body = BulkActionInput(
        action=action,
        filter=criteria,
        reason=reason,
        digest=None if after else digest,
        after=after or None,
        until=until or None,
    )
    receipt = await service.act_on_many(components, session, body)
    if receipt.next is None and not after:
        first = next(iter(receipt.refused.values()), "")
        rejected = f"; {len(receipt.refused)} rejected: {first}" if first else ""
        return await redirect(request, session, "/dead-letters", f"{len(receipt.done)} {_PAST[action]}{rejected}")
    filters = {"saga": saga, "service": service_name, "step": step, "signature": signature}
    return await page(
        request,
        session,
        "dead_letter_batch.html",
        receipt=receipt,
        past=_PAST[action],
        shown=list(receipt.refused.items())[:_SHOWN_REFUSALS],
        done=done + len(receipt.done),
        refused=refused + len(receipt.refused),
        fields={**{name: value for name, value in filters.items() if value}, "action": action.value, "reason": reason},
    )


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

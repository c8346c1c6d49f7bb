"""Dead letters: the list with its groups, one of them, and what operators do about it."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, Response

from perdure.saga.messages import DeadLetterFilter, DeadLetterListRequest
from perdure.saga.schema import OperatorAction
from services.console.api.sagas import PageNumber
from services.console.guard.access import Operator, Viewer
from services.console.pages.approvals import ReasonText
from services.console.pages.render import done, page, path_of
from services.console.parts import EngineOf, PartsOf
from services.console.people.roles import Role, may
from services.console.problems import invalid
from services.console.reads import dead_letters, payloads

router = APIRouter()

PAGE_SIZE = 50
_PAST = {
    OperatorAction.REDRIVE: "redriven",
    OperatorAction.SKIP: "skipped",
    OperatorAction.RESOLVE: "resolved",
    OperatorAction.DISCARD: "discarded",
    OperatorAction.ANNOTATE: "annotated",
}
Filter = Annotated[str, Query(max_length=500)]
FilterField = Annotated[str, Form(max_length=500)]
PayloadText = Annotated[str, Form(max_length=1_000_000)]


@router.get("/dead-letters")
async def list_dead_letters(
    request: Request,
    signed_in: Viewer,
    engine: EngineOf,
    saga: Filter = "",
    service: Filter = "",
    step: Filter = "",
    signature: Filter = "",
    number: Annotated[PageNumber, Query(alias="page")] = 1,
) -> HTMLResponse:
    """List dead letters, the oldest first, and the groups of equal failures."""
    filters = {"saga": saga, "service": service, "step": step, "signature": signature}
    wanted = DeadLetterListRequest(
        saga_id=saga or None,
        service=service or None,
        step=step or None,
        signature=signature or None,
        page=number,
        page_size=PAGE_SIZE,
    )
    if may(signed_in.person.roles, Role.OPERATOR):
        found, shown = await dead_letters.page_to_act_on(engine, wanted)
    else:
        found, shown = await dead_letters.page(engine, wanted), {}
    given = {name: value for name, value in filters.items() if value}
    return await page(
        request,
        signed_in,
        "dead_letters.html",
        found=found,
        shown=shown,
        filters=filters,
        given=given,
        acts=list(OperatorAction),
        most=dead_letters.MOST_AT_ONCE,
    )


@router.post("/dead-letters")
async def act_on_group(
    request: Request,
    signed_in: Operator,
    found: PartsOf,
    act: Annotated[OperatorAction, Form()],
    saga: FilterField = "",
    service: FilterField = "",
    step: FilterField = "",
    signature: FilterField = "",
    reason: ReasonText = "",
    shown: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """Do the same about all dead letters of a group, within the page's filter, as they were shown."""
    if not signature:
        raise invalid("which group? Load the page again")
    which = DeadLetterFilter(saga_id=saga or None, service=service or None, step=step or None, signature=signature)
    receipt = await dead_letters.act_on_many(
        found.engine, found.signer, signed_in, act, which, reason=reason, shown=shown
    )
    refused = f"; {len(receipt.refused)} refused: {next(iter(receipt.refused.values()))}" if receipt.refused else ""
    return await done(request, signed_in, f"{len(receipt.done)} {_PAST[act]}{refused}", "/dead-letters")


@router.post("/dead-letters/{letter_id:path}/compare")
async def compare(
    letter_id: str, request: Request, signed_in: Operator, engine: EngineOf, payload: PayloadText = ""
) -> HTMLResponse:
    """Show how an edited payload differs from the one there is, before it is sent."""
    edited = payloads.read_payload(payload)
    letter, lines = await dead_letters.compare(engine, letter_id, edited)
    written = await asyncio.to_thread(payloads.written, edited)
    return await page(request, signed_in, "compare.html", letter=letter, lines=lines, edited=written)


@router.post("/dead-letters/{letter_id:path}/{act}")
async def act_on_one(
    letter_id: str,
    act: OperatorAction,
    request: Request,
    signed_in: Operator,
    found: PartsOf,
    reason: ReasonText = "",
    payload: PayloadText = "",
    redriven: Annotated[int | None, Form(ge=0)] = None,
) -> Response:
    """Do something about a dead letter."""
    new = payloads.read_payload(payload) if payload and act is OperatorAction.REDRIVE else None
    receipt = await dead_letters.act(
        found.engine, found.signer, signed_in, letter_id, act, reason=reason, payload=new, redriven=redriven
    )
    saga_id = letter_id.rpartition("/")[0]
    to = f"/dead-letters/{path_of(letter_id)}" if act is OperatorAction.ANNOTATE else f"/sagas/{path_of(saga_id)}"
    notice = f"{_PAST[act]}: {receipt.id}; the step is {receipt.state.value.replace('_', ' ')} now"
    return await done(request, signed_in, notice, to)


@router.get("/dead-letters/{letter_id:path}")
async def show_dead_letter(letter_id: str, request: Request, signed_in: Viewer, engine: EngineOf) -> HTMLResponse:
    """Show a dead letter, and what was done about it so far."""
    detail = await dead_letters.one(engine, letter_id)
    written = await asyncio.to_thread(payloads.written, detail.letter.payload)
    return await page(
        request, signed_in, "dead_letter.html", letter=detail.letter, audit_log=detail.audit_log, written=written
    )

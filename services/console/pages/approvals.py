"""The approvals inbox, one approval, and deciding it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from perdure._runtime.plain_text import Reason
from services.console.guard.access import Approver, Viewer
from services.console.pages.render import done, fragment, page, path_of
from services.console.parts import EngineOf, PartsOf
from services.console.people.persons import utc_now
from services.console.problems import invalid
from services.console.reads import approvals
from services.console.reads.approvals import Verdict

router = APIRouter()

ReasonText = Annotated[Reason, Form()]
_PAST = {"approve": "approved", "reject": "rejected"}


@router.get("/approvals")
async def show_inbox(request: Request, signed_in: Viewer, engine: EngineOf) -> HTMLResponse:
    """Show what waits for who is signed in."""
    return await page(request, signed_in, "approvals.html", inbox=await approvals.inbox(engine, signed_in))


@router.post("/approvals/{approval_id:path}/delegate")
async def delegate(
    approval_id: str,
    request: Request,
    signed_in: Approver,
    found: PartsOf,
    to: Annotated[str, Form(max_length=200)] = "",
    until: Annotated[str, Form(max_length=40)] = "",
    reason: ReasonText = "",
) -> Response:
    """Let somebody else decide in one's place."""
    receipt = await approvals.delegate(
        found.engine, found.signer, signed_in, approval_id, to=to, until=_moment(until), reason=reason
    )
    notice = f"{receipt.to} may decide {approval_id} in your place until {receipt.until:%Y-%m-%d %H:%M} UTC"
    return await done(request, signed_in, notice, f"/approvals/{path_of(approval_id)}")


@router.post("/approvals/{approval_id:path}/revoke-links")
async def revoke_links(
    approval_id: str,
    request: Request,
    signed_in: Viewer,
    found: PartsOf,
    person: Annotated[str, Form(max_length=200)] = "",
    reason: ReasonText = "",
) -> Response:
    """End the links that were sent so far."""
    receipt = await approvals.revoke_links(
        found.engine, found.signer, signed_in, approval_id, person=person, reason=reason
    )
    whose = "All links" if receipt.person is None else f"The links of {receipt.person}"
    notice = f"{whose} that were sent so far no longer decide {approval_id}"
    return await done(request, signed_in, notice, f"/approvals/{path_of(approval_id)}")


@router.post("/approvals/{approval_id:path}/{verdict}")
async def decide(
    approval_id: str,
    verdict: Verdict,
    request: Request,
    signed_in: Approver,
    found: PartsOf,
    reason: ReasonText = "",
    payload_digest: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """Approve or reject what was shown."""
    receipt = await approvals.decide(
        found.engine,
        found.signer,
        signed_in,
        approval_id,
        verdict,
        reason=reason,
        payload_digest=payload_digest or None,
    )
    if "hx-request" in request.headers:  # from a saga's page, which stays
        return HTMLResponse(fragment("_decided.html", receipt=receipt))
    notice = f"{_PAST[receipt.action]}: {approval_id}; it is {receipt.status} now"
    return await done(request, signed_in, notice, f"/approvals/{path_of(approval_id)}")


@router.get("/approvals/{approval_id:path}")
async def show_approval(approval_id: str, request: Request, signed_in: Viewer, engine: EngineOf) -> HTMLResponse:
    """Show an approval with its audit log."""
    approval = await approvals.one(engine, approval_id)
    tomorrow = utc_now() + timedelta(days=1)
    return await page(request, signed_in, "approval.html", approval=approval, tomorrow=tomorrow)


def _moment(text: str) -> datetime:
    """Return the moment that a form says, in UTC where it names no zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise invalid("until when? Write it as 2026-11-25T18:00, in UTC") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

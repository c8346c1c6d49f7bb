"""Routes for approvals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from perdure.approvals.messages import DecisionReceipt, DelegationReceipt, LinkRevocationReceipt
from services.console.approvals import service
from services.console.approvals.schemas import (
    ApprovalView,
    Decision,
    DecisionInput,
    DelegationInput,
    Inbox,
    LinkRevocationInput,
)
from services.console.auth.users import utc_now
from services.console.dependencies import Approver, ComponentsDep, EngineDep, ReasonField, Viewer
from services.console.formatting import quote_path
from services.console.problems import ENGINE_ERRORS, invalid
from services.console.rendering import fragment, page, redirect

api = APIRouter(prefix="/api/approvals", tags=["approvals"], responses=ENGINE_ERRORS)
pages = APIRouter(prefix="/approvals")

_PAST: Final = {"approve": "approved", "reject": "rejected"}


@api.get("", operation_id="inbox")
async def inbox(session: Viewer, engine: EngineDep) -> Inbox:
    """List the open approvals for the authenticated user, most urgent first."""
    return await service.inbox(engine, session)


@api.post("/{approval_id:path}/delegate", operation_id="delegate")
async def delegate(
    approval_id: str, body: DelegationInput, session: Approver, components: ComponentsDep
) -> DelegationReceipt:
    """Delegate a vote to another user."""
    return await service.delegate(components, session, approval_id, to=body.to, until=body.until, reason=body.reason)


@api.post("/{approval_id:path}/revoke-links", operation_id="revoke_links")
async def revoke_links(
    approval_id: str, body: LinkRevocationInput, session: Viewer, components: ComponentsDep
) -> LinkRevocationReceipt:
    """Revoke links that have been sent: one's own, or with the necessary rights, those of other users."""
    return await service.revoke_links(components, session, approval_id, owner=body.person or "", reason=body.reason)


@api.post("/{approval_id:path}/approve", operation_id="approve")
async def approve(
    approval_id: str, body: DecisionInput, session: Approver, components: ComponentsDep
) -> DecisionReceipt:
    """Approve."""
    return await service.decide(components, session, approval_id, "approve", **dict(body))


@api.post("/{approval_id:path}/reject", operation_id="reject")
async def reject(
    approval_id: str, body: DecisionInput, session: Approver, components: ComponentsDep
) -> DecisionReceipt:
    """Reject."""
    return await service.decide(components, session, approval_id, "reject", **dict(body))


@api.get("/{approval_id:path}", operation_id="show_approval")
async def show(approval_id: str, _: Viewer, engine: EngineDep) -> ApprovalView:
    """Return an approval with its votes and its audit log."""
    return await service.get(engine, approval_id)


@pages.get("")
async def inbox_page(request: Request, session: Viewer, engine: EngineDep) -> HTMLResponse:
    """Show the open approvals for the authenticated user."""
    return await page(request, session, "approvals.html", inbox=await service.inbox(engine, session))


@pages.post("/{approval_id:path}/delegate")
async def submit_delegation(
    approval_id: str,
    request: Request,
    session: Approver,
    components: ComponentsDep,
    to: Annotated[str, Form(max_length=200)] = "",
    until: Annotated[str, Form(max_length=40)] = "",
    reason: ReasonField = "",
) -> Response:
    """Delegate a vote to another user."""
    receipt = await service.delegate(components, session, approval_id, to=to, until=_parse_time(until), reason=reason)
    notice = f"{receipt.to} may decide {approval_id} in your place until {receipt.until:%Y-%m-%d %H:%M} UTC."
    return await redirect(request, session, _path(approval_id), notice)


@pages.post("/{approval_id:path}/revoke-links")
async def submit_link_revocation(
    approval_id: str,
    request: Request,
    session: Viewer,
    components: ComponentsDep,
    person: Annotated[str, Form(max_length=200)] = "",
    reason: ReasonField = "",
) -> Response:
    """Revoke links that have been sent."""
    receipt = await service.revoke_links(components, session, approval_id, owner=person, reason=reason)
    links = "All links" if receipt.person is None else f"Links of {receipt.person}"
    return await redirect(request, session, _path(approval_id), f"{links} to {approval_id} revoked.")


@pages.post("/{approval_id:path}/{decision}")
async def submit_decision(
    approval_id: str,
    decision: Decision,
    request: Request,
    session: Approver,
    components: ComponentsDep,
    reason: ReasonField = "",
    payload_digest: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """Approve or reject the payload as shown."""
    receipt = await service.decide(
        components, session, approval_id, decision, reason=reason, payload_digest=payload_digest or None
    )
    if "hx-request" in request.headers:  # the form on a saga's page, which stays open
        return HTMLResponse(fragment("_decided.html", receipt=receipt))
    notice = f"You {_PAST[receipt.action]} {approval_id}. Status: {receipt.status}."
    return await redirect(request, session, _path(approval_id), notice)


@pages.get("/{approval_id:path}")
async def show_page(approval_id: str, request: Request, session: Viewer, engine: EngineDep) -> HTMLResponse:
    """Show an approval with its audit log."""
    approval = await service.get(engine, approval_id)
    tomorrow = utc_now() + timedelta(days=1)
    return await page(request, session, "approval.html", approval=approval, tomorrow=tomorrow)


def _path(approval_id: str) -> str:
    return f"/approvals/{quote_path(approval_id)}"


def _parse_time(text: str) -> datetime:
    """Parse the time of a form, in UTC if it has no zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise invalid("until: enter a time in UTC, such as 2026-11-25T18:00") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)

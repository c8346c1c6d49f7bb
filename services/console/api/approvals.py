"""Approvals: the inbox, one approval, and deciding it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from perdure._runtime.plain_text import Reason
from services.console.api.errors import ENGINE
from services.console.guard.access import Approver, Viewer
from services.console.parts import EngineOf, PartsOf
from services.console.reads import approvals
from services.console.reads.approvals import (
    ApprovalView,
    DecisionReceipt,
    DelegationReceipt,
    Inbox,
    LinkRevocationReceipt,
    Verdict,
)

router = APIRouter(prefix="/api/approvals", tags=["approvals"], responses=ENGINE)


class Decision(BaseModel):
    """A decision.

    Args:
        reason: Why.
        payload_digest: The digest of what was shown; with another one by now, the decision is refused.
    """

    model_config = ConfigDict(extra="forbid")

    reason: Reason = ""
    payload_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Delegation(BaseModel):
    """A delegation.

    Args:
        to: Who may decide.
        until: Until when.
        reason: Why.
    """

    model_config = ConfigDict(extra="forbid")

    to: Annotated[str, Field(min_length=1, max_length=200)]
    until: AwareDatetime
    reason: Reason = ""


class LinkRevocation(BaseModel):
    """A revocation of links.

    Args:
        person: Whose links; everybody's when left out.
        reason: Why.
    """

    model_config = ConfigDict(extra="forbid")

    person: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    reason: Reason = ""


@router.get("", operation_id="inbox")
async def show_inbox(signed_in: Viewer, engine: EngineOf) -> Inbox:
    """List what waits for who is signed in, the most urgent first."""
    return await approvals.inbox(engine, signed_in)


@router.post("/{approval_id:path}/delegate", operation_id="delegate")
async def delegate(approval_id: str, delegation: Delegation, signed_in: Approver, found: PartsOf) -> DelegationReceipt:
    """Let somebody else decide in one's place."""
    return await approvals.delegate(
        found.engine,
        found.signer,
        signed_in,
        approval_id,
        to=delegation.to,
        until=delegation.until,
        reason=delegation.reason,
    )


@router.post("/{approval_id:path}/revoke-links", operation_id="revoke_links")
async def revoke_links(
    approval_id: str, revocation: LinkRevocation, signed_in: Viewer, found: PartsOf
) -> LinkRevocationReceipt:
    """End the links that were sent so far: one's own, or with the right to it another person's or everybody's."""
    return await approvals.revoke_links(
        found.engine,
        found.signer,
        signed_in,
        approval_id,
        person=revocation.person or "",
        reason=revocation.reason,
    )


async def _decide(
    approval_id: str, decision: Decision, signed_in: Approver, found: PartsOf, verdict: Verdict
) -> DecisionReceipt:
    return await approvals.decide(
        found.engine,
        found.signer,
        signed_in,
        approval_id,
        verdict,
        reason=decision.reason,
        payload_digest=decision.payload_digest,
    )


@router.post("/{approval_id:path}/approve", operation_id="approve")
async def approve(approval_id: str, decision: Decision, signed_in: Approver, found: PartsOf) -> DecisionReceipt:
    """Approve."""
    return await _decide(approval_id, decision, signed_in, found, "approve")


@router.post("/{approval_id:path}/reject", operation_id="reject")
async def reject(approval_id: str, decision: Decision, signed_in: Approver, found: PartsOf) -> DecisionReceipt:
    """Reject."""
    return await _decide(approval_id, decision, signed_in, found, "reject")


@router.get("/{approval_id:path}", operation_id="show_approval")
async def show_approval(approval_id: str, _: Viewer, engine: EngineOf) -> ApprovalView:
    """Show an approval, with its decisions and its audit log."""
    return await approvals.one(engine, approval_id)

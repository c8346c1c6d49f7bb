"""`Approvals`: one approval, keyed by its id; the policy made durable.

The object owns the deadline: opening it sends `expire` to itself, so that a decision and the end of time meet here, one
after the other, and whichever is first has decided. Whoever opened it only waits for the awakeable.

Every act reads the clock before it touches state. That is the one wait in these handlers; what follows is a row of
writes and sends that no cancel can cut in two.

The ingress authenticates nobody, so an actor is who the caller says it is. `_decide` is the place for a signature.
"""

from __future__ import annotations

from typing import Any

import restate
from pydantic import JsonValue, ValidationError

from perdure.approvals import policy
from perdure.approvals.inbox import inboxes
from perdure.approvals.messages import (
    MAX_ID_LENGTH,
    ApprovalOutcome,
    ApprovalRequest,
    ApprovalStatus,
    AuditEntry,
    Decision,
    DecisionReceipt,
    DecisionRequest,
    Expiry,
    InboxItem,
    Withdrawal,
)
from perdure.approvals.policy import Approval, Change
from perdure.approvals.targets import (
    APPROVALS,
    add_to_inbox,
    approval_status,
    expire_approval,
    open_approval,
    remove_from_inbox,
    withdraw_approval,
)
from perdure.approvals.targets import approve as approve_target
from perdure.approvals.targets import reject as reject_target
from perdure.binding import handler
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import InvalidInput, TerminalError
from perdure.observability.logging import get_logger
from perdure.serdes import invalid_input, serde_for
from perdure.state import State

_outcome_serde = serde_for(ApprovalOutcome)

log = get_logger("perdure.approvals")

approvals = restate.VirtualObject(
    APPROVALS, description="Approvals: who may decide, how many must, until when, and who said what."
)


def definitions() -> list[restate.VirtualObject]:
    """Return the virtual objects to serve: `Approvals` and `ApprovalInbox`, which belong together."""
    return [approvals, inboxes]


@handler(approvals, "exclusive", name=open_approval.handler, ingress_private=True)
async def open_(ctx: restate.ObjectContext, body: JsonValue) -> None:
    """Open an approval (`ApprovalRequest`), or join one that asks the same."""
    # Its sender waits for the awakeable and not for this handler, so a refusal has to reach it there.
    awakeable = body.get("awakeable") if isinstance(body, dict) else None
    try:
        request = _read_request(ctx, body)
        now = await Time(ctx).now()
        before = await _approval(ctx)
        change = policy.open_approval(before, request, now)
        if before.rules is None:
            await _request_state(ctx).set(request)
        await _apply(ctx, before, change)
        if before.rules is None:
            await _announce(ctx, request, change.approval)
    except TerminalError as error:
        if isinstance(awakeable, str):
            ctx.reject_awakeable(awakeable, f"the approval could not be opened: {error.message}", error.status_code)
        raise


@handler(approvals, "exclusive", name=approve_target.handler)
async def approve(ctx: restate.ObjectContext, request: DecisionRequest) -> DecisionReceipt:
    """Approve, as one person; also before the approval is opened."""
    return await _decide(ctx, request, approve=True)


@handler(approvals, "exclusive", name=reject_target.handler)
async def reject(ctx: restate.ObjectContext, request: DecisionRequest) -> DecisionReceipt:
    """Reject, as one person; also before the approval is opened."""
    return await _decide(ctx, request, approve=False)


@handler(approvals, "exclusive", name=withdraw_approval.handler, ingress_private=True)
async def withdraw(ctx: restate.ObjectContext, request: Withdrawal | None) -> None:
    """Take one waiter away, or, without a request, all; the last one ends the approval."""
    now = await Time(ctx).now()
    before = await _approval(ctx)
    await _apply(ctx, before, policy.withdraw(before, request or Withdrawal(), now))


@handler(approvals, "exclusive", name=expire_approval.handler, ingress_private=True)
async def expire(ctx: restate.ObjectContext, expiry: Expiry) -> None:
    """End the approval, unless it has ended or has got another deadline since."""
    now = await Time(ctx).now()
    before = await _approval(ctx)
    if before.deadline == expiry.deadline:
        await _apply(ctx, before, policy.expire(before, now))


@handler(approvals, "shared", name=approval_status.handler)
async def status(ctx: restate.ObjectSharedContext) -> ApprovalStatus:
    """Show an approval, with its trail."""
    _check_id(ctx.key())
    approval = await _approval(ctx)
    request = await _request_state(ctx).get()
    if request is None or approval.rules is None or approval.opened_at is None or approval.deadline is None:
        raise policy.unknown(approval)
    outcome = approval.outcome
    trail = [await _trail_state(ctx, seq).get() for seq in range(1, approval.entries + 1)]
    return ApprovalStatus(
        approval_id=approval.approval_id,
        status=approval.state,
        title=request.title,
        requester=request.requester,
        approvers=request.approvers,
        quorum=request.quorum,
        payload=request.payload,
        payload_digest=approval.rules.payload_digest,
        opened_at=approval.opened_at,
        deadline=approval.deadline,
        decided_at=approval.closed_at,
        decided_by=[] if outcome is None else outcome.decided_by,
        reason="" if outcome is None else outcome.reason,
        decisions=list(approval.decisions),
        refusals=approval.refusals,
        trail=[entry for entry in trail if entry is not None],
    )


async def _decide(ctx: restate.ObjectContext, request: DecisionRequest, *, approve: bool) -> DecisionReceipt:
    _check_id(ctx.key())
    now = await Time(ctx).now()
    before = await _approval(ctx)
    decision = Decision(actor=request.actor, approve=approve, reason=request.reason, at=now)
    change = policy.decide(before, decision)
    await _apply(ctx, before, change)
    counted = change.approval.decision_of(request.actor) or decision
    return DecisionReceipt(
        approval_id=ctx.key(),
        actor=counted.actor,
        act=counted.act,
        reason=counted.reason,
        at=counted.at,
        status=change.approval.state,
    )


async def _apply(ctx: restate.ObjectContext, before: Approval, change: Change) -> None:
    """Make a change durable: record it, answer who waited, clear inboxes, and raise the error if there is one."""
    after = change.approval
    if after != before:
        await _approval_state(ctx).set(after)
    for entry in change.entries:
        await _trail_state(ctx, entry.seq).set(entry)
        log.info("approval.act", act=entry.act, result=entry.result, actor=entry.actor)
    if after.outcome is not None:
        for awakeable in change.answer:
            ctx.resolve_awakeable(awakeable, after.outcome, serde=_outcome_serde)
    for person in sorted(policy.waits_for(before) - policy.waits_for(after)):
        await ObjectClient(ctx, remove_from_inbox, person).send(after.approval_id)
    if change.error is not None:
        raise change.error


async def _announce(ctx: restate.ObjectContext, request: ApprovalRequest, opened: Approval) -> None:
    """Set the end of an approval that has just been opened, and put it into the inboxes of those it waits for."""
    if opened.rules is None or opened.opened_at is None or opened.deadline is None or opened.outcome is not None:
        return
    await ObjectClient(ctx, expire_approval, ctx.key()).send(Expiry(deadline=opened.deadline), delay=request.timeout)
    item = InboxItem(
        approval_id=request.approval_id,
        title=request.title,
        requester=request.requester,
        quorum=request.quorum,
        opened_at=opened.opened_at,
        deadline=opened.deadline,
        payload=request.payload,
        payload_digest=opened.rules.payload_digest,
    )
    for person in sorted(policy.waits_for(opened)):
        await ObjectClient(ctx, add_to_inbox, person).send(item)


def _read_request(ctx: restate.ObjectContext, body: JsonValue) -> ApprovalRequest:
    try:
        request = ApprovalRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_input(error) from error
    if request.approval_id != ctx.key():
        raise InvalidInput(
            f"a request for approval '{request.approval_id}' was sent to another one", metadata={"field": "approval_id"}
        )
    return request


def _check_id(key: str) -> None:
    if len(key) > MAX_ID_LENGTH:
        raise InvalidInput(
            f"approval_id: at most {MAX_ID_LENGTH} characters are allowed, this one has {len(key)}",
            metadata={"field": "approval_id"},
        )


def _request_state(ctx: Any) -> State[ApprovalRequest]:
    return State(ctx, "request", ApprovalRequest)


def _approval_state(ctx: Any) -> State[Approval]:
    return State(ctx, "approval", Approval)


def _trail_state(ctx: Any, seq: int) -> State[AuditEntry]:
    return State(ctx, f"trail/{seq:06d}", AuditEntry)


async def _approval(ctx: Any) -> Approval:
    return await _approval_state(ctx).get() or Approval(approval_id=ctx.key())

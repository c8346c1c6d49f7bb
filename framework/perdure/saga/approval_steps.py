"""Approvals from inside an orchestration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, TypedDict

import restate
from pydantic import ValidationError

from perdure._runtime.serdes import invalid_input
from perdure._runtime.waiting import until_done
from perdure._wake_ups import WakeUpBackoff, make_wait_id, new_awakeable
from perdure.approvals.messages import ApprovalOutcome, ApprovalResult, Leave, Listen
from perdure.approvals.request import ApprovalRequest, OnTimeout, Stage
from perdure.approvals.targets import leave_approval, listen_to_approval, open_approval
from perdure.callers import Caller
from perdure.clients import ObjectClient
from perdure.errors import ApprovalTimeout, Cancelled, Refused
from perdure.observability.activities import ActivityKind, activity


class ApprovalOptions(TypedDict, total=False):
    """Options of an approval; see `perdure.approvals.request.ApprovalRequest` for limits and defaults.

    Args:
        title: The decision to take, in one sentence.
        subject: The person that the business is about. Neither the subject nor the requester may vote.
        approvers: Eligible users and groups (``group:finance``); everyone if empty.
        groups: Members of groups by name; members of other groups prove their membership.
        quorum: Number of approvals required.
        veto: Users whose single rejection decides.
        remind_every: Interval of reminders.
        on_timeout: Effect of the end of the time: ``error`` by default.
        escalation: Stages that follow when the time is over.
        payload: JSON that the approvers see.
    """

    title: str
    subject: str
    approvers: Sequence[str]
    groups: Mapping[str, Sequence[str]]
    quorum: int
    veto: Sequence[str]
    remind_every: timedelta | None
    on_timeout: OnTimeout | Literal["error", "reject", "approve", "escalate"] | None
    escalation: Sequence[Stage]
    payload: Any


async def request_approval(
    ctx: restate.Context, approval_id: str, timeout: timedelta, options: ApprovalOptions, caller: Caller | None
) -> ApprovalOutcome:
    """Open an approval and wait for its outcome; see `Orchestration.request_approval`."""
    with activity(ctx, ActivityKind.APPROVAL, approval_id):
        request, woken = await _new_request(ctx, approval_id, timeout, options, caller)
        try:
            outcome = await await_approval(ctx, request, woken)
        except Cancelled:
            leave = Leave(wait=request.wait, reason="the orchestration was cancelled")
            await ObjectClient(ctx, leave_approval, approval_id).send(leave)
            raise
        if outcome.outcome is ApprovalResult.TIMED_OUT:
            raise ApprovalTimeout(f"approval timeout after {request.total_timeout}", metadata={"approval": approval_id})
        if outcome.outcome is ApprovalResult.WITHDRAWN:
            raise Refused(
                f"approval '{approval_id}' was withdrawn: {outcome.reason}",
                409,
                "approval_withdrawn",
                {"approval": approval_id},
            )
        return outcome


async def _new_request(
    ctx: restate.Context, approval_id: str, timeout: timedelta, options: ApprovalOptions, caller: Caller | None
) -> tuple[ApprovalRequest, restate.RestateDurableFuture[Any]]:
    wait = await make_wait_id(ctx, "approval")
    awakeable, woken = new_awakeable(ctx)
    try:
        request = ApprovalRequest.model_validate(
            {
                **options,
                **_requester(caller, options.get("subject", "")),
                "approval_id": approval_id,
                "title": options.get("title") or approval_id,
                "timeout": timeout,
                "wait": wait,
                "awakeable": awakeable,
                "opener": ctx.request().id,
            }
        )
    except ValidationError as error:
        raise invalid_input(error) from error
    return request, woken


def _requester(caller: Caller | None, subject: str) -> dict[str, Any]:
    """Return the requester's fields: the authenticated caller, else the unverified subject."""
    if caller is None:
        return {"requester": subject, "requester_verified": False, "requester_owner": ""}
    return {"requester": caller.name, "requester_verified": True, "requester_owner": caller.owner or ""}


async def await_approval(
    ctx: restate.Context, request: ApprovalRequest, woken: restate.RestateDurableFuture[Any]
) -> ApprovalOutcome:
    """Open an approval, and read its outcome from `Approvals` whenever the request's awakeable is completed.

    Raises:
        Cancelled: This invocation was cancelled.
        TerminalError: `Approvals` refused the request, or deleted the approval.
    """
    approval_id, wait = request.approval_id, request.wait
    awaited = f"approval '{approval_id}'"
    backoff = WakeUpBackoff(ctx, awaited)
    answer = await ObjectClient(ctx, open_approval, approval_id).call(request)
    while answer.wait != wait or answer.outcome is None:
        if answer.wait == wait:  # a forged answer does not prove that the approval is open
            await until_done(woken, awaited)
        awakeable, woken = new_awakeable(ctx)
        answer = await ObjectClient(ctx, listen_to_approval, approval_id).call(Listen(wait=wait, awakeable=awakeable))
        if answer.wait != wait or answer.outcome is None:
            await backoff.pause()
    return answer.outcome

"""Asking people from inside an orchestration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypedDict

import restate
from pydantic import ValidationError

from perdure._runtime.serdes import invalid_input
from perdure._runtime.waiting import until_done
from perdure._wake_ups import WakeUps, make_wait_id, new_awakeable
from perdure.approvals.messages import ApprovalOutcome, ApprovalResult, Leave, Listen
from perdure.approvals.request import ApprovalRequest, OnTimeout, Stage
from perdure.approvals.targets import leave_approval, listen_to_approval, open_approval
from perdure.callers import Caller
from perdure.clients import ObjectClient
from perdure.errors import ApprovalTimeout, Cancelled, Refused
from perdure.observability.activities import ActivityKind, activity


def _requester(caller: Caller | None, subject: str) -> dict[str, Any]:
    """Return the fields of a request that say who asks: the authenticated caller, else the subject, unverified."""
    if caller is None:
        return {"requester": subject, "requester_verified": False, "requester_owner": ""}
    return {"requester": caller.name, "requester_verified": True, "requester_owner": caller.owner or ""}


class AskOptions(TypedDict, total=False):
    """How people are asked; each one is a field of `perdure.approvals.request.ApprovalRequest`."""

    title: str
    subject: str
    approvers: Sequence[str]
    groups: Mapping[str, Sequence[str]]
    quorum: int
    veto: Sequence[str]
    remind_every: timedelta | None
    on_timeout: OnTimeout | str | None
    escalation: Sequence[Stage]
    payload: Any


async def ask(
    ctx: restate.Context, approval_id: str, timeout: timedelta, options: AskOptions, caller: Caller | None
) -> ApprovalOutcome:
    """Open an approval and wait for its outcome; see `Orchestration.request_approval`."""
    with activity(ctx, ActivityKind.APPROVAL, approval_id):
        return await _ask(ctx, approval_id, timeout, options, caller)


async def _ask(
    ctx: restate.Context, approval_id: str, timeout: timedelta, options: AskOptions, caller: Caller | None
) -> ApprovalOutcome:
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
    try:
        outcome = await outcome_of(ctx, request, woken)
    except Cancelled:
        wish = Leave(wait=wait, reason="the orchestration was cancelled")
        await ObjectClient(ctx, leave_approval, approval_id).send(wish)
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


async def outcome_of(
    ctx: restate.Context, request: ApprovalRequest, woken: restate.RestateDurableFuture[Any]
) -> ApprovalOutcome:
    """Open an approval, and read its outcome from `Approvals` whenever the awakeable is completed.

    Args:
        ctx: The orchestration's context.
        request: What is asked.
        woken: The future of the request's awakeable.

    Raises:
        Cancelled: This invocation was cancelled.
        TerminalError: `Approvals` refused the request, or has deleted the approval since.
    """
    approval_id, wait = request.approval_id, request.wait
    what = f"approval '{approval_id}'"
    wake_ups = WakeUps(ctx, what)
    answer = await ObjectClient(ctx, open_approval, approval_id).call(request)
    while answer.wait != wait or answer.outcome is None:
        if answer.wait == wait:  # a forged answer says nothing, not even that there is something to wait for
            await until_done(woken, what)
        awakeable, woken = new_awakeable(ctx)
        answer = await ObjectClient(ctx, listen_to_approval, approval_id).call(Listen(wait=wait, awakeable=awakeable))
        if answer.wait != wait or answer.outcome is None:
            await wake_ups.was_early()
    return answer.outcome

"""Asking people from inside an orchestration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypedDict

import restate
from pydantic import ValidationError

from perdure.approvals.messages import ApprovalOutcome, ApprovalResult, Leave
from perdure.approvals.request import ApprovalRequest, OnTimeout, Stage
from perdure.approvals.targets import leave_approval, open_approval
from perdure.callers import Caller
from perdure.clients import ObjectClient
from perdure.errors import ApprovalTimeout, Cancelled, Refused
from perdure.observability.activities import ActivityKind, activity
from perdure.serdes import invalid_input
from perdure.signals import AnswerSerde
from perdure.waiting import until_done

_outcome_serde = AnswerSerde(ApprovalOutcome)


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
    awakeable, decided = ctx.awakeable(serde=_outcome_serde)
    try:
        request = ApprovalRequest.model_validate(
            {
                **options,
                **_requester(caller, options.get("subject", "")),
                "approval_id": approval_id,
                "title": options.get("title") or approval_id,
                "timeout": timeout,
                "awakeable": awakeable,
                "opener": ctx.request().id,
            }
        )
    except ValidationError as error:
        raise invalid_input(error) from error
    await ObjectClient(ctx, open_approval, approval_id).send(request)
    try:
        await until_done(decided, f"approval '{approval_id}'")
    except Cancelled:
        wish = Leave(awakeable=awakeable, reason="the orchestration was cancelled")
        await ObjectClient(ctx, leave_approval, approval_id).send(wish)
        raise
    outcome = await decided
    if outcome.outcome is ApprovalResult.TIMED_OUT:
        raise ApprovalTimeout(f"approval timeout after {request.time_in_all}", metadata={"approval": approval_id})
    if outcome.outcome is ApprovalResult.WITHDRAWN:
        raise Refused(
            f"approval '{approval_id}' was withdrawn: {outcome.reason}",
            409,
            "approval_withdrawn",
            {"approval": approval_id},
        )
    return outcome

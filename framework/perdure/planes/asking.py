"""Asking people from inside an orchestration."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import restate
from pydantic import ValidationError

from perdure.approvals.messages import ApprovalOutcome, ApprovalRequest, ApprovalResult, Withdrawal
from perdure.approvals.targets import open_approval, withdraw_approval
from perdure.clients import ObjectClient
from perdure.errors import ApprovalTimeout, Cancelled, Refused
from perdure.serdes import invalid_input, serde_for
from perdure.signals import AnswerSerde
from perdure.waiting import until_done

_outcome_serde = AnswerSerde(serde_for(ApprovalOutcome))


async def ask(
    ctx: restate.Context,
    approval_id: str,
    timeout: timedelta,
    *,
    title: str,
    requester: str,
    approvers: list[str],
    quorum: int,
    payload: Any,
) -> ApprovalOutcome:
    """Open an approval and wait for its outcome; see `Orchestration.request_approval`."""
    awakeable, decided = ctx.awakeable(serde=_outcome_serde)
    try:
        request = ApprovalRequest(
            approval_id=approval_id,
            title=title or approval_id,
            requester=requester,
            approvers=approvers,
            quorum=quorum,
            timeout=timeout,
            payload=payload,
            awakeable=awakeable,
        )
    except ValidationError as error:
        raise invalid_input(error) from error
    await ObjectClient(ctx, open_approval, approval_id).send(request)
    try:
        await until_done(decided, f"approval '{approval_id}'")
    except Cancelled:
        withdrawal = Withdrawal(awakeable=awakeable, reason="the orchestration was cancelled")
        await ObjectClient(ctx, withdraw_approval, approval_id).send(withdrawal)
        raise
    outcome = await decided
    if outcome.outcome is ApprovalResult.TIMED_OUT:
        raise ApprovalTimeout(f"approval timeout after {timeout}", metadata={"approval": approval_id})
    if outcome.outcome is ApprovalResult.WITHDRAWN:
        raise Refused(
            f"approval '{approval_id}' was withdrawn: {outcome.reason}",
            409,
            "approval_withdrawn",
            {"approval": approval_id},
        )
    return outcome

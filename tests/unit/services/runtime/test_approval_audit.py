from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.approvals import policy
from perdure.approvals.messages import ApprovalStatus, Vote
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.schema import Approval
from perdure.security import PrivateKey, SigningMode, SigningRules, TrustedKeys, json_digest
from services.data_plane.audit.trips import ConfirmedCharge
from services.runtime.approval_audit import judge_approvals

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
ORDER = {"payment": {"account": "acct-ada", "amount_minor": 900_000, "currency": "EUR"}}
CHARGE = ConfirmedCharge("T1", "acct-ada", 900_000, NOON)


def approval(*, approve: bool | None = True, payload: Any = ORDER) -> ApprovalStatus:
    request = ApprovalRequest(
        approval_id="T1", title="?", timeout=timedelta(hours=1), payload=payload, wait="w", awakeable="a"
    )
    change = policy.open_approval(Approval(approval_id="T1"), request, NOON)
    if approve is not None:
        decision = Vote(actor="grace", approve=approve, at=NOON)
        change = change.then(lambda opened: policy.decide(opened, decision))
    return ApprovalStatus(
        approval_id="T1", status=change.approval.state, title="?", requester="", approvers=[], quorum=1,
        payload=payload, payload_digest=json_digest(payload), opened_at=NOON, deadline=NOON, decided_at=None,
        decided_by=[], reason="", decisions=[], refusals=0, audit_log=list(change.entries), head=change.approval.head,
    )  # fmt: skip


def judged(found: ApprovalStatus | None, rules: SigningRules | None = None) -> list[tuple[str, str]]:
    return judge_approvals([CHARGE], {} if found is None else {"T1": found}, rules or SigningRules())


def changed_reason(found: ApprovalStatus) -> ApprovalStatus:
    last = found.audit_log[-1].model_copy(update={"reason": "another"})
    return found.model_copy(update={"audit_log": [*found.audit_log[:-1], last]})


def without_approval(found: ApprovalStatus) -> ApprovalStatus:
    """Return the status with a forged audit log that has no vote."""
    opened = approval(approve=None)
    return found.model_copy(update={"audit_log": opened.audit_log, "head": opened.head})


def test_approved_charge_holds():
    assert judged(approval()) == []


def test_charge_without_approval_is_a_breach():
    assert judged(None) == [("T1", "charged 900000 minor units without an approval")]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (approval(approve=None), "its approval is open"),
        (approval(approve=False), "its approval is rejected"),
        (approval(payload={"payment": {**ORDER["payment"], "amount_minor": 90}}), "a different payment was approved"),
        (
            approval(payload={"payment": {**ORDER["payment"], "account": "acct-bob"}}),
            "a different payment was approved",
        ),
        (approval(payload="a trip"), "a different payment was approved"),
        (approval(payload=None), "a different payment was approved"),
    ],
)
def test_other_outcome_is_a_breach(found: ApprovalStatus, why: str):
    ((trip, detail),) = judged(found)
    assert (trip, why in detail) == ("T1", True), detail


@pytest.mark.parametrize(("change", "why"), [(changed_reason, "was changed"), (without_approval, "has no entry")])
def test_changed_audit_log_is_a_breach(change: Callable[[ApprovalStatus], ApprovalStatus], why: str):
    ((trip, detail),) = judged(change(approval()))
    assert (trip, why in detail) == ("T1", True), detail


def test_audit_refuses_unsigned_approval_in_signed_mode():
    rules = SigningRules(mode=SigningMode.SIGNED, trusted_keys=TrustedKeys(issuers=(PrivateKey.generate().public,)))
    ((trip, detail),) = judged(approval(), rules)
    assert (trip, "no signature" in detail) == ("T1", True), detail

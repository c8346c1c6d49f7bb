"""Examples of groups, veto, delegation, stages and withdrawal; test_stage_properties.py has the properties."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.approvals.eligibility import MAX_DELEGATIONS
from perdure.approvals.messages import Delegation, Vote
from perdure.approvals.policy import (
    Change,
    PendingNotification,
    decide,
    delegate,
    end_stage,
    open_approval,
    remind,
    withdraw,
)
from perdure.approvals.request import ApprovalRequest, Stage
from perdure.approvals.schema import Approval
from perdure.errors import error_code
from perdure.security import json_digest

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def opened(**changes: Any) -> Approval:
    fields = {
        "approval_id": "T1",
        "title": "Trip",
        "requester": "req",
        "timeout": HOUR,
        "wait": "a1",
        "awakeable": "w1",
        **changes,
    }
    return open_approval(Approval(approval_id="T1"), ApprovalRequest(**fields), NOON).approval


def vote(
    approval: Approval, actor: str, approve: bool = True, minutes: int = 1, groups: tuple[str, ...] = ()
) -> Change:
    at = NOON + timedelta(minutes=minutes)
    return decide(approval, Vote(actor=actor, approve=approve, at=at, groups=list(groups)))


def delegated(
    approval: Approval, actor: str, to: str, *, until: int = 30, minutes: int = 1, groups: tuple[str, ...] = ()
) -> Change:
    at, end = NOON + timedelta(minutes=minutes), NOON + timedelta(minutes=until)
    return delegate(approval, Delegation(actor=actor, to=to, until=end, at=at, groups=list(groups)))


def refusal(change: Change) -> tuple[int, str | None]:
    assert change.error is not None
    assert change.entries[-1].result == f"refused:{error_code(change.error)}"
    return change.error.status_code, error_code(change.error)


def test_group_members_vote_once_each():
    approval = opened(approvers=["group:finance"], quorum=2)
    assert approval.pending_approvers() == {"group:finance"}
    assert refusal(vote(approval, "ada")) == (403, "not_an_approver")
    once = vote(approval, "ada", groups=("finance", "other")).approval
    assert once.pending_approvers() == {"group:finance"}
    assert vote(once, "ada", groups=("finance",)) == Change(once)
    assert vote(once, "bob", groups=("finance",)).approval.state == "approved"


def test_named_members_define_group():
    approval = opened(groups={"finance": ["ada", "bob", "req"]}, approvers=["group:finance", "cy"], quorum=2)
    assert approval.pending_approvers() == {"ada", "bob", "cy"}
    assert refusal(vote(approval, "eve", groups=("finance",))) == (403, "not_an_approver")
    assert refusal(vote(approval, "req", groups=("finance",))) == (403, "own_request")
    twice_no = vote(vote(approval, "ada", approve=False).approval, "bob", approve=False)
    assert twice_no.approval.state == "rejected"  # one approver is left, and the quorum is two


def test_quorum_applies_to_rejections_of_unknown_members():
    approval = opened(approvers=["group:finance", "ada"], quorum=2)
    once = vote(approval, "ada", approve=False).approval
    assert once.state == "open"
    assert vote(once, "bob", approve=False, groups=("finance",)).approval.state == "rejected"


def test_single_veto_rejects():
    approval = opened(approvers=["ada", "bob", "cy"], quorum=3, veto=["cfo", "group:legal", "ada"])
    assert approval.pending_approvers() == {"ada", "bob", "cy", "cfo", "group:legal"}
    yes = vote(approval, "bob").approval
    assert refusal(vote(yes, "cfo")) == (403, "not_an_approver")
    for who, groups in [("cfo", ()), ("eve", ("legal",)), ("ada", ())]:
        change = vote(yes, who, approve=False, groups=groups)
        assert change.approval.state == "rejected"
        assert change.approval.outcome is not None
        assert change.approval.outcome.decided_by == [who]
    assert vote(yes, "cy", approve=False).approval.state == "rejected"  # three approvals are unreachable
    everyone = opened(quorum=2, veto=["anyone"])
    assert vote(everyone, "dee", approve=False).approval.state == "rejected"


def test_delegate_of_two_has_one_vote():
    approval = opened(approvers=["ada", "bob"], quorum=2)
    both = delegated(delegated(approval, "ada", "cy").approval, "bob", "cy").approval
    assert both.pending_approvers() == {"ada", "bob", "cy"}
    change = vote(both, "cy")
    assert change.approval.state == "open"
    (decision,) = change.approval.votes
    assert (decision.actor, decision.on_behalf_of) == ("cy", "ada")  # the first delegation
    assert change.entries[-1].details["on_behalf_of"] == "ada"
    assert refusal(vote(change.approval, "ada")) == (409, "vote_used")
    assert vote(change.approval, "cy", minutes=2) == Change(change.approval)
    assert change.approval.pending_approvers() == {"bob"}
    assert vote(change.approval, "bob").approval.state == "approved"


def test_delegator_vote_uses_delegation():
    approval = delegated(opened(approvers=["ada", "bob"], quorum=2), "ada", "cy").approval
    decided = vote(approval, "ada").approval
    assert decided.pending_approvers() == {"bob"}
    assert refusal(vote(decided, "cy")) == (409, "vote_used")
    assert refusal(delegated(decided, "ada", "dee")) == (409, "vote_used")


def test_own_vote_takes_precedence_over_delegation():
    approval = opened(approvers=["ada"], escalation=[Stage(approvers=["cy"], timeout=HOUR)])
    escalated = end_stage(delegated(approval, "ada", "cy", until=100).approval, NOON + HOUR).approval
    assert escalated.pending_approvers() == {"cy"}
    change = vote(escalated, "cy", minutes=61)
    assert change.approval.votes[0].on_behalf_of is None


def test_delegation_expires_and_is_replaceable():
    approval = delegated(opened(approvers=["ada"]), "ada", "cy", until=10).approval
    assert refusal(vote(approval, "cy", minutes=10)) == (403, "delegation_expired")
    assert vote(approval, "cy", minutes=9).approval.state == "approved"
    assert delegated(approval, "ada", "cy", until=10, minutes=2) == Change(approval)
    other = delegated(approval, "ada", "dee", until=20).approval
    assert [delegation.to for delegation in other.delegations] == ["dee"]
    assert refusal(vote(other, "cy")) == (403, "not_an_approver")


def test_expired_delegation_does_not_hide_valid_one():
    approval = delegated(opened(approvers=["ada", "bob"], quorum=2), "ada", "cy", until=5).approval
    both = delegated(approval, "bob", "cy", until=30).approval
    assert vote(both, "cy", minutes=10).approval.votes[0].on_behalf_of == "bob"


def test_reject_invalid_delegations():
    approval = delegated(opened(approvers=["ada", "bob", "group:finance"], quorum=1), "ada", "cy").approval
    assert refusal(delegated(approval, "req", "dee")) == (403, "own_request")
    assert refusal(delegated(approval, "bob", "req")) == (403, "delegation_to_requester")
    assert refusal(delegated(approval, "cy", "dee")) == (403, "not_an_approver")  # a delegated vote
    assert refusal(delegated(approval, "bob", "ada")) == (409, "delegate_may_decide")
    assert refusal(delegated(approval, "bob", "dee", until=1)) == (400, "invalid_input")
    assert delegated(approval, "eve", "dee", groups=("finance",)).error is None
    ended = vote(approval, "bob").approval
    assert refusal(delegated(ended, "ada", "dee")) == (409, "too_late")
    assert error_code(delegated(Approval(approval_id="T1"), "ada", "cy").error or pytest.fail("taken")) == "not_found"
    assert refusal(delegated(opened(), "ada", "cy")) == (409, "delegate_may_decide")  # anyone may


def test_delegations_are_bounded():
    approval = opened(approvers=["group:finance"])
    for number in range(MAX_DELEGATIONS):
        approval = delegated(approval, f"p{number}", "cy", groups=("finance",)).approval
    assert refusal(delegated(approval, "one more", "cy", groups=("finance",))) == (429, "too_many_delegations")
    assert delegated(approval, "p3", "dee", groups=("finance",)).error is None


def test_delegate_of_veto_holder_may_reject():
    approval = delegated(opened(approvers=["ada"], veto=["cfo"]), "cfo", "cy").approval
    assert refusal(vote(approval, "cy")) == (403, "not_an_approver")
    assert vote(approval, "cy", approve=False).approval.state == "rejected"


def test_escalation_has_own_approvers_quorum_and_timeout():
    chain = [Stage(approvers=["boss", "ada"], quorum=2, timeout=2 * HOUR), Stage(timeout=HOUR, on_timeout="reject")]
    approval = opened(approvers=["ada", "bob"], quorum=2, escalation=chain)
    yes = vote(vote(approval, "ada").approval, "bob", approve=False).approval
    assert yes.state == "rejected"
    first = vote(approval, "ada").approval
    change = end_stage(first, NOON + HOUR)
    assert (change.notifications, change.wake) == ((PendingNotification("escalated"),), ())
    assert [(entry.action, entry.result, entry.details["stage"]) for entry in change.entries] == [
        ("escalate", "escalated", "1")
    ]
    second = change.approval
    assert (second.stage, second.deadline, second.pending_approvers()) == (1, NOON + 3 * HOUR, {"boss"})
    assert refusal(vote(second, "bob", minutes=61)) == (403, "not_an_approver")
    assert vote(second, "boss", minutes=61).approval.state == "approved"
    third = end_stage(second, NOON + 3 * HOUR).approval
    assert third.state == "approved"  # the earlier vote of ada is enough in this stage
    silent = end_stage(end_stage(end_stage(approval, NOON + HOUR).approval, NOON + 3 * HOUR).approval, NOON + 4 * HOUR)
    assert silent.approval.state == "rejected"
    assert silent.approval.outcome is not None
    assert silent.approval.outcome.reason.endswith("with 0 of 1 approvals; rejected by on_timeout")


def test_vote_after_deadline_belongs_to_next_stage():
    approval = opened(approvers=["ada"], escalation=[Stage(approvers=["boss"], timeout=HOUR)])
    change = vote(approval, "boss", minutes=60)
    assert [entry.result for entry in change.entries] == ["escalated", "approved"]
    change = vote(approval, "ada", minutes=60)
    assert refusal(change) == (403, "not_an_approver")
    assert change.error is not None
    assert "not among the approvers of stage 1" in change.error.message


def test_reminders_count_within_their_stage():
    approval = opened(approvers=["ada"], escalation=[Stage(approvers=["boss"], timeout=HOUR)])
    once = remind(approval, 0, 1, NOON)
    assert once.notifications == (PendingNotification("reminder", number=1),)
    assert once.entries[0].details == {"number": "1", "to": "ada"}
    assert remind(once.approval, 0, 1, NOON) == Change(once.approval)
    assert remind(once.approval, 0, 3, NOON) == Change(once.approval)
    assert remind(once.approval, 1, 2, NOON) == Change(once.approval)
    escalated = end_stage(once.approval, NOON + HOUR).approval
    assert escalated.reminders == 0
    assert remind(escalated, 0, 2, NOON + HOUR) == Change(escalated)
    assert remind(escalated, 1, 1, NOON + HOUR).approval.reminders == 1
    assert remind(escalated, 1, 1, NOON + 2 * HOUR) == Change(escalated)  # overdue


@pytest.mark.parametrize(
    ("meaning", "state"), [("approve", "approved"), ("reject", "rejected"), ("error", "timed_out")]
)
def test_effect_of_timeout(meaning: str, state: str):
    change = end_stage(opened(on_timeout=meaning), NOON + HOUR)
    assert (change.approval.state, change.wake, change.entries[0].action) == (state, ("w1",), "expire")
    assert end_stage(change.approval, NOON + HOUR) == Change(change.approval)


def test_only_the_requester_withdraws():
    approval = opened(approvers=["ada"])
    assert refusal(withdraw(approval, "ada", "", NOON)) == (403, "not_the_requester")
    assert refusal(withdraw(opened(requester=""), "ada", "", NOON)) == (403, "not_the_requester")
    gone = withdraw(approval, "req", "", NOON)
    assert (gone.approval.state, gone.wake) == ("withdrawn", ("w1",))
    assert gone.approval.outcome is not None
    assert (gone.approval.outcome.decided_by, gone.approval.outcome.reason) == (["req"], "withdrawn by req")
    assert withdraw(gone.approval, "req", "", NOON + HOUR) == Change(gone.approval)
    assert refusal(withdraw(vote(approval, "ada").approval, "req", "", NOON)) == (409, "too_late")
    assert refusal(withdraw(approval, "req", "", NOON + HOUR)) == (409, "too_late")
    assert (
        error_code(withdraw(Approval(approval_id="T1"), "req", "", NOON).error or pytest.fail("taken")) == "not_found"
    )


def test_early_vote_for_other_payload_is_dropped():
    shown = json_digest({"amount": 1})
    early = Vote(actor="ada", approve=True, at=NOON - HOUR, signed=True, payload_digest=shown)
    before = decide(Approval(approval_id="T1"), early).approval
    for payload, state in [({"amount": 1}, "approved"), ({"amount": 2}, "open")]:
        fields = {
            "approval_id": "T1",
            "title": "Trip",
            "timeout": HOUR,
            "wait": "a1",
            "awakeable": "w1",
            "payload": payload,
        }
        change = open_approval(before, ApprovalRequest.model_validate(fields), NOON)
        assert change.approval.state == state
    assert change.entries[-1].result == "refused:wrong_payload"

"""Examples of the voting rules; test_policy_properties.py has the properties."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.approvals.eligibility import MAX_EARLY_VOTES
from perdure.approvals.messages import Leave, Listen, Vote
from perdure.approvals.policy import (
    MAX_RECORDED_REFUSALS,
    Change,
    decide,
    end_stage,
    leave,
    listen,
    open_approval,
)
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.schema import Approval
from perdure.errors import error_code
from perdure.security import json_digest
from perdure.security.user_names import ANYONE

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def asked(**changes: Any) -> ApprovalRequest:
    fields = {
        "approval_id": "T1",
        "title": "Trip",
        "requester": "req",
        "timeout": HOUR,
        "wait": "a1",
        "awakeable": "w1",
        **changes,
    }
    return ApprovalRequest(**fields)


def opened(**changes: Any) -> Approval:
    return open_approval(Approval(approval_id="T1"), asked(**changes), NOON).approval


def vote(approval: Approval, actor: str, approve: bool = True, reason: str = "", minutes: int = 1) -> Change:
    at = NOON + timedelta(minutes=minutes)
    return decide(approval, Vote(actor=actor, approve=approve, reason=reason, at=at))


def refusal(change: Change) -> tuple[int, str | None]:
    assert change.error is not None
    return change.error.status_code, error_code(change.error)


def results(change: Change) -> list[str]:
    return [entry.result for entry in change.entries]


def test_single_vote_reaches_quorum_of_one():
    change = vote(opened(), "ada", reason="fine")
    assert change.approval.state == "approved"
    assert change.wake == ("w1",)
    assert change.approval.outcome is not None
    assert (change.approval.outcome.decided_by, change.approval.outcome.reason) == (["ada"], "fine")
    assert vote(opened(), "ada", approve=False).approval.state == "rejected"


def test_requester_may_not_vote():
    change = vote(opened(), "req")
    assert refusal(change) == (403, "own_request")
    assert change.approval.state == "open"
    assert refusal(vote(opened(approvers=["req", "ada"]), "req")) == (403, "own_request")


def test_only_approvers_may_vote():
    assert refusal(vote(opened(approvers=["ada"]), "bob")) == (403, "not_an_approver")


def test_quorum_of_two_out_of_three():
    approval = opened(approvers=["ada", "bob", "cy"], quorum=2)
    first = vote(approval, "ada", reason="yes")
    assert (first.approval.state, results(first), first.wake) == ("open", ["counted"], ())
    assert first.approval.pending_approvers() == {"bob", "cy"}
    second = vote(first.approval, "cy", reason="ok")
    assert (second.approval.state, results(second), second.wake) == ("approved", ["approved"], ("w1",))
    assert second.approval.outcome is not None
    assert second.approval.outcome.reason == "ada: yes; cy: ok"
    assert second.approval.pending_approvers() == set()


def test_reject_when_quorum_is_unreachable():
    once = vote(opened(approvers=["ada", "bob", "cy"], quorum=2), "ada", approve=False).approval
    assert once.state == "open"
    twice = vote(once, "bob", approve=False).approval
    assert twice.state == "rejected"
    assert twice.outcome is not None
    assert twice.outcome.decided_by == ["ada", "bob"]


def test_requester_does_not_count_towards_quorum():
    approval = opened(approvers=["ada", "bob", "req"], quorum=2)
    assert approval.pending_approvers() == {"ada", "bob"}
    assert vote(approval, "ada", approve=False).approval.state == "rejected"


def test_quorum_applies_to_rejections_of_anyone():
    approval = opened(quorum=2)
    assert approval.pending_approvers() == {ANYONE}
    split = vote(vote(approval, "ada").approval, "bob", approve=False).approval
    assert split.state == "open"
    assert vote(split, "cy").approval.state == "approved"
    assert vote(split, "cy", approve=False).approval.state == "rejected"


def test_repeated_vote_changes_nothing():
    once = vote(opened(approvers=["ada", "bob"], quorum=2), "ada", reason="first").approval
    again = vote(once, "ada", reason="second", minutes=2)
    assert again == Change(once)
    ended = vote(once, "bob").approval
    assert vote(ended, "ada", minutes=600) == Change(ended)


def test_contrary_second_vote_is_conflict():
    once = vote(opened(approvers=["ada", "bob"], quorum=2), "ada").approval
    change = vote(once, "ada", approve=False)
    assert refusal(change) == (409, "contrary_decision")
    assert change.approval.votes == once.votes
    ended = vote(once, "bob").approval
    assert refusal(vote(ended, "bob", approve=False)) == (409, "contrary_decision")


def test_late_vote_error_reports_outcome():
    ended = vote(opened(), "ada").approval
    change = vote(ended, "bob", approve=False, minutes=5)
    assert refusal(change) == (409, "too_late")
    assert change.error is not None
    assert "was approved by ada at 2030-01-01T12:01:00+00:00" in change.error.message
    assert change.error.metadata == {
        "code": "too_late",
        "outcome": "approved",
        "decided_by": "ada",
        "decided_at": "2030-01-01T12:01:00+00:00",
    }
    assert change.approval.outcome == ended.outcome


def test_eligibility_is_checked_after_the_end():
    ended = vote(opened(approvers=["ada"]), "ada").approval
    assert refusal(vote(ended, "req")) == (403, "own_request")
    assert refusal(vote(ended, "bob")) == (403, "not_an_approver")


def test_early_votes_count_at_opening():
    early = vote(Approval(approval_id="T1"), "ada", reason="go", minutes=-5)
    assert (early.approval.state, results(early)) == ("expected", ["early"])
    change = open_approval(early.approval, asked(), NOON)
    assert (change.approval.state, change.wake) == ("approved", ("w1",))
    assert results(change) == ["opened", "approved"]
    assert change.approval.closed_at == NOON
    assert change.approval.votes[0].at == NOON - timedelta(minutes=5)


def test_ineligible_early_votes_are_dropped_and_recorded():
    approval = Approval(approval_id="T1")
    for actor in ("req", "mallory", "ada"):
        approval = vote(approval, actor, minutes=-1).approval
    change = open_approval(approval, asked(approvers=["ada", "bob"], quorum=2), NOON)
    assert change.error is None
    assert results(change) == ["opened", "refused:own_request", "refused:not_an_approver", "counted"]
    assert [decision.actor for decision in change.approval.votes] == ["ada"]
    assert change.approval.pending_approvers() == {"bob"}
    assert change.approval.refusals == 2


def test_early_vote_after_deciding_one_is_late():
    approval = vote(vote(Approval(approval_id="T1"), "ada").approval, "bob", approve=False).approval
    change = open_approval(approval, asked(), NOON)
    assert change.error is None
    assert results(change) == ["opened", "approved", "refused:too_late"]


def test_early_votes_are_bounded():
    once = vote(Approval(approval_id="T1"), "ada").approval
    assert vote(once, "ada") == Change(once)
    assert refusal(vote(once, "ada", approve=False)) == (409, "contrary_decision")
    full = once
    for number in range(MAX_EARLY_VOTES - 1):
        full = vote(full, f"p{number}").approval
    assert refusal(vote(full, "one more")) == (429, "too_many_early_decisions")
    assert vote(full, "p3") == Change(full)


def test_deadline_times_out():
    change = end_stage(vote(opened(approvers=["ada", "bob"], quorum=2), "ada").approval, NOON + HOUR)
    assert (change.approval.state, change.wake, results(change)) == ("timed_out", ("w1",), ["timed_out"])
    assert change.approval.outcome is not None
    assert change.approval.outcome.decided_by == []
    assert change.approval.outcome.reason == "timed out at 2030-01-01T13:00:00+00:00 with 1 of 2 approvals"
    assert end_stage(change.approval, NOON + HOUR) == Change(change.approval)


def test_vote_at_deadline_is_late():
    approval = opened()
    assert vote(approval, "ada", minutes=59).approval.state == "approved"
    change = vote(approval, "ada", minutes=60)
    assert (change.approval.state, change.wake) == ("timed_out", ("w1",))
    assert results(change) == ["timed_out", "refused:too_late"]
    assert refusal(change) == (409, "too_late")
    assert change.error is not None
    assert "timed out at 2030-01-01T13:00:00+00:00" in change.error.message


def test_only_open_approvals_expire():
    assert end_stage(Approval(approval_id="T1"), NOON) == Change(Approval(approval_id="T1"))
    ended = vote(opened(), "ada").approval
    assert end_stage(ended, NOON + HOUR) == Change(ended)


def test_last_waiter_withdraws():
    change = leave(opened(), Leave(wait="a1", reason="trip cancelled"), NOON)
    assert (change.approval.state, results(change)) == ("withdrawn", ["withdrawn"])
    assert change.approval.outcome is not None
    assert change.approval.outcome.reason == "trip cancelled"
    assert refusal(vote(change.approval, "ada")) == (409, "too_late")


def test_other_waiter_keeps_approval_open():
    both = open_approval(opened(), asked(wait="a2", awakeable="w2"), NOON).approval
    left = leave(both, Leave(wait="a1"), NOON)
    assert (left.approval.state, left.wake, results(left)) == ("open", (), ["left"])
    assert vote(left.approval, "ada").wake == ("w2",)
    everyone = leave(both, Leave(), NOON)
    assert (everyone.approval.state, everyone.wake) == ("withdrawn", ("w1", "w2"))


def test_leave_without_effect():
    gone = leave(opened(), Leave(wait="a1"), NOON).approval
    assert leave(gone, Leave(wait="a1"), NOON) == Change(gone)
    assert leave(opened(), Leave(wait="stranger"), NOON) == Change(opened())
    assert leave(opened(), Leave(), NOON + HOUR).approval.state == "timed_out"
    assert refusal(leave(Approval(approval_id="T1"), Leave(), NOON)) == (404, "not_found")


def test_reopen_is_idempotent_and_second_waiter_joins():
    approval = opened()
    assert open_approval(approval, asked(), NOON) == Change(approval)
    joined = open_approval(approval, asked(wait="a2", awakeable="w2", title="other words"), NOON)
    assert (joined.error, results(joined)) == (None, ["joined"])
    assert joined.approval.deadline == approval.deadline
    assert vote(joined.approval, "ada").wake == ("w1", "w2")


def test_opening_after_the_end_returns_outcome():
    ended = vote(opened(), "ada").approval
    assert open_approval(ended, asked(wait="a2", awakeable="w2"), NOON + 2 * HOUR) == Change(ended)
    overdue = open_approval(opened(), asked(wait="a2", awakeable="w2"), NOON + HOUR)
    assert (overdue.approval.state, overdue.wake) == ("timed_out", ("w1",))


def test_listen_replaces_awakeable():
    again = listen(opened(), Listen(wait="a1", awakeable="w9"), NOON)
    assert (again.entries, again.error) == ((), None)
    assert vote(again.approval, "ada").wake == ("w9",)
    ended = vote(again.approval, "ada").approval
    assert listen(ended, Listen(wait="a1", awakeable="w10"), NOON + 2 * HOUR) == Change(ended)


@pytest.mark.parametrize("approval", [Approval(approval_id="T1"), opened(), vote(opened(), "ada").approval])
def test_unknown_wait_reads_no_outcome(approval: Approval):
    change = listen(approval, Listen(wait="stranger", awakeable="w9"), NOON)
    assert (change.approval, change.wake) == (approval, ())
    assert refusal(change) == (404, "unknown_wait")


def test_listen_ends_overdue_approval():
    change = listen(opened(), Listen(wait="a1", awakeable="w9"), NOON + HOUR)
    assert (change.approval.state, results(change), change.error) == ("timed_out", ["timed_out"], None)


@pytest.mark.parametrize(
    "other",
    [{"payload": 2}, {"requester": "someone else"}, {"approvers": ["ada"]}, {"approvers": ["bob"], "quorum": 1}],
)
def test_other_question_under_same_id_is_conflict(other: dict[str, Any]):
    approval = opened(payload=1)
    change = open_approval(approval, asked(**{"payload": 1, "wait": "a2", "awakeable": "w2", **other}), NOON)
    assert refusal(change) == (409, "another_question")
    assert change.approval.waiters == {"a1": "w1"}
    assert change.wake == ()


def test_order_of_approvers_is_irrelevant():
    approval = opened(approvers=["ada", "bob"])
    assert open_approval(approval, asked(approvers=["bob", "ada"]), NOON).error is None


def test_recorded_refusals_are_bounded():
    approval = opened()
    audit_log = 0
    for _ in range(MAX_RECORDED_REFUSALS + 5):
        change = vote(approval, "req")
        assert refusal(change) == (403, "own_request")
        audit_log += len(change.entries)
        approval = change.approval
    assert (audit_log, approval.refusals) == (MAX_RECORDED_REFUSALS, MAX_RECORDED_REFUSALS + 5)
    assert vote(approval, "ada").entries[0].seq == approval.entries + 1


def test_payload_digest_uses_canonical_json():
    assert json_digest({"b": 1, "a": [True, None]}) == json_digest({"a": [True, None], "b": 1})
    assert json_digest({"a": 1}) != json_digest({"a": "1"})
    # sha256 of `null` and of `{"a":1,"b":"é"}`
    assert json_digest(None) == "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"
    assert json_digest({"b": "é", "a": 1}) == "09ad9fd2fb648cb2f62141215828ea00a62c299db05d20aa9ade2f527a301cc6"

"""The rules of approvals, case by case. The general laws are in test_approval_laws.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.approvals.messages import Decision, Leave, Listen
from perdure.approvals.policy import (
    MAX_EARLY_DECISIONS,
    MAX_RECORDED_REFUSALS,
    Approval,
    Change,
    decide,
    end_stage,
    leave,
    listen,
    open_approval,
    payload_digest,
    waits_for,
)
from perdure.approvals.request import ApprovalRequest
from perdure.errors import error_code
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
    return decide(approval, Decision(actor=actor, approve=approve, reason=reason, at=at))


def refusal(change: Change) -> tuple[int, str | None]:
    assert change.error is not None
    return change.error.status_code, error_code(change.error)


def results(change: Change) -> list[str]:
    return [entry.result for entry in change.entries]


def test_the_first_decision_of_anyone_decides():
    change = vote(opened(), "ada", reason="fine")
    assert change.approval.state == "approved"
    assert change.wake == ("w1",)
    assert change.approval.outcome is not None
    assert (change.approval.outcome.decided_by, change.approval.outcome.reason) == (["ada"], "fine")
    assert vote(opened(), "ada", approve=False).approval.state == "rejected"


def test_nobody_decides_their_own_request():
    change = vote(opened(), "req")
    assert refusal(change) == (403, "own_request")
    assert change.approval.state == "open"
    assert refusal(vote(opened(approvers=["req", "ada"]), "req")) == (403, "own_request")


def test_only_approvers_decide():
    assert refusal(vote(opened(approvers=["ada"]), "bob")) == (403, "not_an_approver")


def test_two_of_three():
    approval = opened(approvers=["ada", "bob", "cy"], quorum=2)
    first = vote(approval, "ada", reason="yes")
    assert (first.approval.state, results(first), first.wake) == ("open", ["counted"], ())
    assert waits_for(first.approval) == {"bob", "cy"}
    second = vote(first.approval, "cy", reason="ok")
    assert (second.approval.state, results(second), second.wake) == ("approved", ["approved"], ("w1",))
    assert second.approval.outcome is not None
    assert second.approval.outcome.reason == "ada: yes; cy: ok"
    assert waits_for(second.approval) == set()


def test_two_of_three_is_rejected_as_soon_as_one_is_left():
    once = vote(opened(approvers=["ada", "bob", "cy"], quorum=2), "ada", approve=False).approval
    assert once.state == "open"
    twice = vote(once, "bob", approve=False).approval
    assert twice.state == "rejected"
    assert twice.outcome is not None
    assert twice.outcome.decided_by == ["ada", "bob"]


def test_the_requester_among_the_approvers_is_not_counted_on():
    approval = opened(approvers=["ada", "bob", "req"], quorum=2)
    assert waits_for(approval) == {"ada", "bob"}
    assert vote(approval, "ada", approve=False).approval.state == "rejected"


def test_two_of_anyone_takes_two_of_a_kind():
    approval = opened(quorum=2)
    assert waits_for(approval) == {ANYONE}
    split = vote(vote(approval, "ada").approval, "bob", approve=False).approval
    assert split.state == "open"
    assert vote(split, "cy").approval.state == "approved"
    assert vote(split, "cy", approve=False).approval.state == "rejected"


def test_the_same_decision_again_changes_nothing():
    once = vote(opened(approvers=["ada", "bob"], quorum=2), "ada", reason="first").approval
    again = vote(once, "ada", reason="second", minutes=2)
    assert again == Change(once)
    ended = vote(once, "bob").approval
    assert vote(ended, "ada", minutes=600) == Change(ended)


def test_a_contrary_decision_of_the_same_person_is_a_conflict():
    once = vote(opened(approvers=["ada", "bob"], quorum=2), "ada").approval
    change = vote(once, "ada", approve=False)
    assert refusal(change) == (409, "contrary_decision")
    assert change.approval.decisions == once.decisions
    ended = vote(once, "bob").approval
    assert refusal(vote(ended, "bob", approve=False)) == (409, "contrary_decision")


def test_a_late_decision_is_told_what_was_decided_by_whom_and_when():
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


def test_who_may_not_decide_is_told_so_even_when_it_is_late():
    ended = vote(opened(approvers=["ada"]), "ada").approval
    assert refusal(vote(ended, "req")) == (403, "own_request")
    assert refusal(vote(ended, "bob")) == (403, "not_an_approver")


def test_early_decisions_count_at_opening():
    early = vote(Approval(approval_id="T1"), "ada", reason="go", minutes=-5)
    assert (early.approval.state, results(early)) == ("expected", ["kept"])
    change = open_approval(early.approval, asked(), NOON)
    assert (change.approval.state, change.wake) == ("approved", ("w1",))
    assert results(change) == ["opened", "approved"]
    assert change.approval.closed_at == NOON
    assert change.approval.decisions[0].at == NOON - timedelta(minutes=5)


def test_inadmissible_early_decisions_are_dropped_with_an_entry():
    approval = Approval(approval_id="T1")
    for actor in ("req", "mallory", "ada"):
        approval = vote(approval, actor, minutes=-1).approval
    change = open_approval(approval, asked(approvers=["ada", "bob"], quorum=2), NOON)
    assert change.error is None
    assert results(change) == ["opened", "refused:own_request", "refused:not_an_approver", "counted"]
    assert [decision.actor for decision in change.approval.decisions] == ["ada"]
    assert waits_for(change.approval) == {"bob"}
    assert change.approval.refusals == 2


def test_an_early_decision_after_the_deciding_one_is_dropped_as_late():
    approval = vote(vote(Approval(approval_id="T1"), "ada").approval, "bob", approve=False).approval
    change = open_approval(approval, asked(), NOON)
    assert change.error is None
    assert results(change) == ["opened", "approved", "refused:too_late"]


def test_early_decisions_also_come_once_per_person_and_are_bounded():
    once = vote(Approval(approval_id="T1"), "ada").approval
    assert vote(once, "ada") == Change(once)
    assert refusal(vote(once, "ada", approve=False)) == (409, "contrary_decision")
    full = once
    for number in range(MAX_EARLY_DECISIONS - 1):
        full = vote(full, f"p{number}").approval
    assert refusal(vote(full, "one more")) == (429, "too_many_early_decisions")
    assert vote(full, "p3") == Change(full)


def test_the_deadline_ends_it():
    change = end_stage(vote(opened(approvers=["ada", "bob"], quorum=2), "ada").approval, NOON + HOUR)
    assert (change.approval.state, change.wake, results(change)) == ("timed_out", ("w1",), ["timed_out"])
    assert change.approval.outcome is not None
    assert change.approval.outcome.decided_by == []
    assert change.approval.outcome.reason == "time was over at 2030-01-01T13:00:00+00:00 with 1 of 2 approvals"
    assert end_stage(change.approval, NOON + HOUR) == Change(change.approval)


def test_a_decision_at_the_deadline_finds_it_timed_out_although_nobody_ended_it():
    approval = opened()
    assert vote(approval, "ada", minutes=59).approval.state == "approved"
    change = vote(approval, "ada", minutes=60)
    assert (change.approval.state, change.wake) == ("timed_out", ("w1",))
    assert results(change) == ["timed_out", "refused:too_late"]
    assert refusal(change) == (409, "too_late")
    assert change.error is not None
    assert "timed out at 2030-01-01T13:00:00+00:00" in change.error.message


def test_nothing_expires_that_is_not_open():
    assert end_stage(Approval(approval_id="T1"), NOON) == Change(Approval(approval_id="T1"))
    ended = vote(opened(), "ada").approval
    assert end_stage(ended, NOON + HOUR) == Change(ended)


def test_withdrawn_by_the_only_one_who_waits():
    change = leave(opened(), Leave(wait="a1", reason="trip cancelled"), NOON)
    assert (change.approval.state, results(change)) == ("withdrawn", ["withdrawn"])
    assert change.approval.outcome is not None
    assert change.approval.outcome.reason == "trip cancelled"
    assert refusal(vote(change.approval, "ada")) == (409, "too_late")


def test_one_of_two_who_wait_leaves_and_the_other_goes_on():
    both = open_approval(opened(), asked(wait="a2", awakeable="w2"), NOON).approval
    left = leave(both, Leave(wait="a1"), NOON)
    assert (left.approval.state, left.wake, results(left)) == ("open", (), ["left"])
    assert vote(left.approval, "ada").wake == ("w2",)
    everyone = leave(both, Leave(), NOON)
    assert (everyone.approval.state, everyone.wake) == ("withdrawn", ("w1", "w2"))


def test_withdrawing_twice_too_late_or_from_nothing():
    gone = leave(opened(), Leave(wait="a1"), NOON).approval
    assert leave(gone, Leave(wait="a1"), NOON) == Change(gone)
    assert leave(opened(), Leave(wait="stranger"), NOON) == Change(opened())
    assert leave(opened(), Leave(), NOON + HOUR).approval.state == "timed_out"
    assert refusal(leave(Approval(approval_id="T1"), Leave(), NOON)) == (404, "not_found")


def test_opening_again_is_idempotent_and_another_one_joins():
    approval = opened()
    assert open_approval(approval, asked(), NOON) == Change(approval)
    joined = open_approval(approval, asked(wait="a2", awakeable="w2", title="other words"), NOON)
    assert (joined.error, results(joined)) == (None, ["joined"])
    assert joined.approval.deadline == approval.deadline
    assert vote(joined.approval, "ada").wake == ("w1", "w2")


def test_who_opens_it_after_its_end_is_told_at_once():
    ended = vote(opened(), "ada").approval
    assert open_approval(ended, asked(wait="a2", awakeable="w2"), NOON + 2 * HOUR) == Change(ended)
    overdue = open_approval(opened(), asked(wait="a2", awakeable="w2"), NOON + HOUR)
    assert (overdue.approval.state, overdue.wake) == ("timed_out", ("w1",))


def test_woken_waiter_waits_on_another_awakeable():
    again = listen(opened(), Listen(wait="a1", awakeable="w9"), NOON)
    assert (again.entries, again.error) == ((), None)
    assert vote(again.approval, "ada").wake == ("w9",)
    ended = vote(again.approval, "ada").approval
    assert listen(ended, Listen(wait="a1", awakeable="w10"), NOON + 2 * HOUR) == Change(ended)


@pytest.mark.parametrize("approval", [Approval(approval_id="T1"), opened(), vote(opened(), "ada").approval])
def test_unknown_wait_reads_no_outcome(approval: Approval):
    """Of a deleted approval, and of another one under the same id."""
    change = listen(approval, Listen(wait="stranger", awakeable="w9"), NOON)
    assert (change.approval, change.wake) == (approval, ())
    assert refusal(change) == (404, "unknown_wait")


def test_listening_ends_an_overdue_approval():
    change = listen(opened(), Listen(wait="a1", awakeable="w9"), NOON + HOUR)
    assert (change.approval.state, results(change), change.error) == ("timed_out", ["timed_out"], None)


@pytest.mark.parametrize(
    "other",
    [{"payload": 2}, {"requester": "someone else"}, {"approvers": ["ada"]}, {"approvers": ["bob"], "quorum": 1}],
)
def test_the_same_id_for_another_question_is_a_conflict(other: dict[str, Any]):
    approval = opened(payload=1)
    change = open_approval(approval, asked(**{"payload": 1, "wait": "a2", "awakeable": "w2", **other}), NOON)
    assert refusal(change) == (409, "another_question")
    assert change.approval.waiters == {"a1": "w1"}
    assert change.wake == ()


def test_the_order_of_approvers_makes_no_other_question():
    approval = opened(approvers=["ada", "bob"])
    assert open_approval(approval, asked(approvers=["bob", "ada"]), NOON).error is None


def test_refusals_are_recorded_up_to_a_bound_and_counted_beyond():
    approval = opened()
    audit_log = 0
    for _ in range(MAX_RECORDED_REFUSALS + 5):
        change = vote(approval, "req")
        assert refusal(change) == (403, "own_request")
        audit_log += len(change.entries)
        approval = change.approval
    assert (audit_log, approval.refusals) == (MAX_RECORDED_REFUSALS, MAX_RECORDED_REFUSALS + 5)
    assert vote(approval, "ada").entries[0].seq == approval.entries + 1


def test_the_digest_is_that_of_the_canonical_json():
    assert payload_digest({"b": 1, "a": [True, None]}) == payload_digest({"a": [True, None], "b": 1})
    assert payload_digest({"a": 1}) != payload_digest({"a": "1"})
    # sha256 of `null` and of `{"a":1,"b":"é"}`
    assert payload_digest(None) == "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"
    assert payload_digest({"b": "é", "a": 1}) == "09ad9fd2fb648cb2f62141215828ea00a62c299db05d20aa9ade2f527a301cc6"

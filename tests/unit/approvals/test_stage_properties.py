"""Properties of approvals with groups, veto, delegation and stages under any sequence of actions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.approvals.audit_log import verify_audit_log
from perdure.approvals.messages import ApprovalResult, AuditEntry, Delegation, Leave, Vote
from perdure.approvals.policy import (
    Change,
    decide,
    delegate,
    end_stage,
    leave,
    open_approval,
    remind,
    withdraw,
)
from perdure.approvals.request import ApprovalRequest, OnTimeout, Stage
from perdure.approvals.schema import Approval
from perdure.security.user_names import is_group

START = datetime(2030, 1, 1, tzinfo=UTC)
PEOPLE = ["req", "ada", "bob", "cy", "dee", "eve"]
NAMES = [*PEOPLE[1:], "group:known", "group:open"]
GROUPS = {"known": ["ada", "dee", "req"]}
MEMBERSHIPS = {"eve": ["open"], "bob": ["open"]}

stages = st.builds(
    Stage,
    approvers=st.lists(st.sampled_from(NAMES), max_size=4, unique=True),
    timeout=st.integers(5, 15).map(lambda minutes: timedelta(minutes=minutes)),
    remind_every=st.sampled_from([None, timedelta(minutes=4)]),
)


@st.composite
def requests(draw: st.DrawFn) -> ApprovalRequest:
    chain = draw(st.lists(stages, min_size=1, max_size=3))
    chain = [
        # The known group has two eligible members, so this quorum is reachable.
        stage.model_copy(update={"quorum": draw(st.integers(1, 2 if "group:known" in stage.approvers else 1))})
        for stage in chain
    ]
    return ApprovalRequest(
        approval_id="T1",
        title="t",
        requester="req",
        groups=GROUPS,
        approvers=chain[0].approvers,
        quorum=chain[0].quorum,
        veto=draw(st.lists(st.sampled_from([*NAMES, "anyone"]), max_size=1)),
        timeout=chain[0].timeout,
        remind_every=chain[0].remind_every,
        on_timeout=draw(st.sampled_from([OnTimeout.ERROR, OnTimeout.APPROVE, OnTimeout.REJECT]))
        if len(chain) == 1
        else None,
        escalation=chain[1:],
        wait="a1",
        awakeable="wa1",
    )


Action: TypeAlias = tuple[str, str, str, bool]
actions = st.tuples(
    st.sampled_from(["decide"] * 5 + ["delegate"] * 3 + ["open", "leave", "withdraw", "end", "remind"]),
    st.sampled_from(PEOPLE),
    st.sampled_from(PEOPLE),
    st.booleans(),
)


def perform(  # noqa: PLR0911 - one per action
    approval: Approval, request: ApprovalRequest, action: Action, at: datetime
) -> Change:
    kind, who, other, flag = action
    groups = MEMBERSHIPS.get(who, [])
    match kind:
        case "decide":
            return decide(approval, Vote(actor=who, approve=flag, at=at, groups=groups))
        case "delegate":
            until = at + timedelta(minutes=1 if flag else 30)
            return delegate(approval, Delegation(actor=who, to=other, until=until, at=at, groups=groups))
        case "open":
            return open_approval(approval, request.model_copy(update={"wait": f"a-{who}", "awakeable": f"a-{who}"}), at)
        case "leave":
            return leave(approval, Leave(wait=f"a-{who}"), at)
        case "withdraw":
            return withdraw(approval, who, "", at)
        case "end":
            return end_stage(approval, at) if approval.is_overdue(at) else Change(approval)
        case _:
            return remind(approval, approval.stage, approval.reminders + 1, at)


@dataclass
class History:
    """An approval, its audit log and its woken waiters."""

    request: ApprovalRequest
    approval: Approval = field(default_factory=lambda: Approval(approval_id="T1"))
    audit_log: list[AuditEntry] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)

    def perform(self, action: Action, at: datetime) -> Change:
        change = perform(self.approval, self.request, action, at)
        self.approval = change.approval
        self.audit_log += change.entries
        self.answered.update(change.wake)
        return change


def check_people(approval: Approval) -> None:
    actors = [vote.actor for vote in approval.votes]
    approvers = [vote.approver for vote in approval.votes]
    assert len(set(actors)) == len(actors), "one vote per person"
    assert len(set(approvers)) == len(approvers), "one vote per approver, including delegations"
    if approval.rules is None:
        return
    assert "req" not in actors, "the requester does not vote"
    assert "req" not in approvers, "no delegate votes for the requester"
    for delegation in approval.delegations:
        assert "req" not in (delegation.actor, delegation.to)
    for vote in approval.votes:
        if vote.on_behalf_of is not None:
            matching = [d for d in approval.delegations if (d.actor, d.to) == (vote.on_behalf_of, vote.actor)]
            assert len(matching) == 1
            assert vote.at < matching[0].until, "delegations expire"
    pending = approval.pending_approvers()
    assert not pending & set(actors), "voters are not pending"
    assert "req" not in pending
    assert all(not is_group(name) or name == "group:open" for name in pending), "known members are pending by name"


def check_outcome(history: History) -> None:
    approval = history.approval
    if approval.outcome is None or approval.rules is None:
        return
    assert approval.pending_approvers() == set()
    assert approval.waiters == {}
    counted = approval.rules.counted_votes(approval.stage, approval.votes)
    stage = approval.rules.stages[approval.stage]
    approving = {vote.actor for vote in counted if vote.approve}
    timed_out = approval.outcome.reason.startswith("timed out")
    match approval.outcome.outcome:
        case ApprovalResult.APPROVED if not timed_out:
            assert len(approving) >= stage.quorum, "a quorum consists of different people"
            assert set(approval.outcome.decided_by) == approving
        case ApprovalResult.REJECTED if not timed_out:
            assert any(not vote.approve for vote in counted)
        case ApprovalResult.TIMED_OUT:
            assert stage.on_timeout is OnTimeout.ERROR
        case ApprovalResult.WITHDRAWN:
            assert history.audit_log[-1].action in ("withdraw", "leave") or "refused" in history.audit_log[-1].result
        case _:
            assert stage.on_timeout.value in ("approve", "reject")


@settings(max_examples=400)
@given(requests(), st.lists(actions, max_size=30), st.lists(st.integers(0, 4), min_size=30, max_size=30))
def test_stages_keep_invariants(request_: ApprovalRequest, sequence: list[Action], minutes: list[int]):
    history = History(request_)
    at = START
    for action, step in zip(sequence, minutes, strict=False):
        at += timedelta(minutes=step)
        before = history.approval
        change = history.perform(action, at)
        after = history.approval
        check_people(after)
        check_outcome(history)
        assert after.stage >= before.stage, "stages only advance"
        assert after.votes[: len(before.votes)] == before.votes or before.rules is None
        if before.outcome is not None:
            assert (after.outcome, after.votes, after.stage) == (before.outcome, before.votes, before.stage)
        if change.error is None and action[0] != "remind":
            repeated = perform(after, request_, action, at)
            assert (repeated.approval, repeated.entries, repeated.error) == (after, (), None), (
                "a repeat changes nothing"
            )
    assert verify_audit_log("T1", history.audit_log, head=history.approval.head).intact
    assert all(count == 1 or history.approval.outcome is not None for count in history.answered.values())


votes = st.tuples(st.sampled_from(PEOPLE[1:]), st.booleans())


@given(requests(), st.lists(votes, max_size=4, unique_by=lambda vote: vote[0]), votes, votes)
def test_non_deciding_votes_commute(
    request_: ApprovalRequest, earlier: list[tuple[str, bool]], one: tuple[str, bool], two: tuple[str, bool]
):
    def after(*cast: tuple[str, bool]) -> Approval:
        approval = open_approval(Approval(approval_id="T1"), request_, START).approval
        for who, approve in cast:
            vote = Vote(actor=who, approve=approve, at=START, groups=MEMBERSHIPS.get(who, []))
            approval = decide(approval, vote).approval
        return approval

    first, second = after(*earlier, one, two), after(*earlier, two, one)
    if one[0] == two[0]:
        return
    if first.outcome is None and second.outcome is None:
        assert {(d.actor, d.approve) for d in first.votes} == {(d.actor, d.approve) for d in second.votes}
        assert first.pending_approvers() == second.pending_approvers()
        assert first.refusals == second.refusals
    if one[1] == two[1] and first.outcome is not None and second.outcome is not None:
        assert first.outcome.outcome == second.outcome.outcome, "the order of agreeing votes is irrelevant"


@given(requests(), st.integers(0, 40))
def test_timeouts_run_through_all_stages(request_: ApprovalRequest, late: int):
    """A late timer does not shorten the next stage."""
    approval = open_approval(Approval(approval_id="T1"), request_, START).approval
    seen = [approval.stage]
    while approval.outcome is None:
        assert approval.deadline is not None
        at = approval.deadline + timedelta(minutes=late)
        approval = end_stage(approval, at).approval
        if approval.outcome is None:
            seen.append(approval.stage)
            assert approval.deadline == at + request_.stages[approval.stage].timeout
    assert seen == list(range(len(request_.stages)))
    means = {OnTimeout.ERROR: "timed_out", OnTimeout.APPROVE: "approved", OnTimeout.REJECT: "rejected"}
    assert approval.outcome.outcome == means[request_.stages[-1].on_timeout or OnTimeout.ERROR]
    assert approval.outcome.decided_by == []

"""What holds for approvals with groups, veto, delegation and stages: any acts, in any order, at any time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.approvals.approval import deciders
from perdure.approvals.audit_log import verify_audit_log
from perdure.approvals.messages import ApprovalResult, AuditEntry, Decision, Delegation, Leave
from perdure.approvals.policy import (
    Approval,
    Change,
    decide,
    delegate,
    end_stage,
    leave,
    open_approval,
    remind,
    waits_for,
    withdraw,
)
from perdure.approvals.request import ApprovalRequest, OnTimeout, Stage
from perdure.security.user_names import is_group

START = datetime(2030, 1, 1, tzinfo=UTC)
PEOPLE = ["req", "ada", "bob", "cy", "dee", "eve"]
NAMES = [*PEOPLE[1:], "group:known", "group:open"]
GROUPS = {"known": ["ada", "dee", "req"]}
PROVES = {"eve": ["open"], "bob": ["open"]}

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
        # The known group has two members who may decide, so that this can always be reached.
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


Act: TypeAlias = tuple[str, str, str, bool]
acts = st.tuples(
    st.sampled_from(["decide"] * 5 + ["delegate"] * 3 + ["open", "leave", "withdraw", "end", "remind"]),
    st.sampled_from(PEOPLE),
    st.sampled_from(PEOPLE),
    st.booleans(),
)


def perform(  # noqa: PLR0911 - one for each act
    approval: Approval, request: ApprovalRequest, act: Act, at: datetime
) -> Change:
    kind, who, other, flag = act
    groups = PROVES.get(who, [])
    match kind:
        case "decide":
            return decide(approval, Decision(actor=who, approve=flag, at=at, groups=groups))
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
            return end_stage(approval, at) if approval.overdue(at) else Change(approval)
        case _:
            return remind(approval, approval.stage, approval.reminders + 1, at)


@dataclass
class Story:
    """What happened to one approval."""

    request: ApprovalRequest
    approval: Approval = field(default_factory=lambda: Approval(approval_id="T1"))
    audit_log: list[AuditEntry] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)

    def perform(self, act: Act, at: datetime) -> Change:
        change = perform(self.approval, self.request, act, at)
        self.approval = change.approval
        self.audit_log += change.entries
        self.answered.update(change.wake)
        return change


def check_people(approval: Approval) -> None:
    actors = [decision.actor for decision in approval.decisions]
    seats = [decision.seat for decision in approval.decisions]
    assert len(set(actors)) == len(actors), "nobody decides twice"
    assert len(set(seats)) == len(seats), "no vote is used twice, by delegation or otherwise"
    if approval.rules is None:
        return
    assert "req" not in actors, "the requester never decides"
    assert "req" not in seats, "nor does anybody in the requester's place"
    for delegation in approval.delegations:
        assert "req" not in (delegation.actor, delegation.to)
    for decision in approval.decisions:
        if decision.on_behalf_of is not None:
            matching = [d for d in approval.delegations if (d.actor, d.to) == (decision.on_behalf_of, decision.actor)]
            assert len(matching) == 1
            assert decision.at < matching[0].until, "a delegation ends"
            assert decision.actor in deciders([decision])
    waited_for = waits_for(approval)
    assert not waited_for & set(actors), "who has decided is not waited for"
    assert "req" not in waited_for
    assert all(not is_group(name) or name == "group:open" for name in waited_for), (
        "known members are waited for by name"
    )


def check_outcome(story: Story) -> None:
    approval = story.approval
    if approval.outcome is None or approval.rules is None:
        return
    assert waits_for(approval) == set()
    assert approval.waiters == {}
    counted = approval.rules.counted(approval.stage, approval.decisions)
    stage = approval.rules.stages[approval.stage]
    approving = {decision.actor for decision in counted if decision.approve}
    by_time = "time was over" in approval.outcome.reason
    match approval.outcome.outcome:
        case ApprovalResult.APPROVED if not by_time:
            assert len(approving) >= stage.quorum, "a quorum is that many different people"
            assert set(approval.outcome.decided_by) == approving
        case ApprovalResult.REJECTED if not by_time:
            assert any(not decision.approve for decision in counted)
        case ApprovalResult.TIMED_OUT:
            assert stage.on_timeout is OnTimeout.ERROR
        case ApprovalResult.WITHDRAWN:
            assert story.audit_log[-1].act in ("withdraw", "leave") or "refused" in story.audit_log[-1].result
        case _:
            assert stage.on_timeout.value in ("approve", "reject")


@settings(max_examples=4 * settings.default.max_examples)
@given(requests(), st.lists(acts, max_size=30), st.lists(st.integers(0, 4), min_size=30, max_size=30))
def test_laws(request_: ApprovalRequest, sequence: list[Act], minutes: list[int]):
    story = Story(request_)
    at = START
    for act, step in zip(sequence, minutes, strict=False):
        at += timedelta(minutes=step)
        before = story.approval
        change = story.perform(act, at)
        after = story.approval
        check_people(after)
        check_outcome(story)
        assert after.stage >= before.stage, "there is no way back"
        assert after.decisions[: len(before.decisions)] == before.decisions or before.rules is None
        if before.outcome is not None:
            assert (after.outcome, after.decisions, after.stage) == (before.outcome, before.decisions, before.stage)
        if change.error is None and act[0] != "remind":
            repeated = perform(after, request_, act, at)
            assert (repeated.approval, repeated.entries, repeated.error) == (after, (), None), "a repeat does nothing"
    assert verify_audit_log("T1", story.audit_log, head=story.approval.head).intact
    assert all(count == 1 or story.approval.outcome is not None for count in story.answered.values())


votes = st.tuples(st.sampled_from(PEOPLE[1:]), st.booleans())


@given(requests(), st.lists(votes, max_size=4, unique_by=lambda vote: vote[0]), votes, votes)
def test_decisions_that_decide_nothing_commute(
    request_: ApprovalRequest, earlier: list[tuple[str, bool]], one: tuple[str, bool], two: tuple[str, bool]
):
    def after(*cast: tuple[str, bool]) -> Approval:
        approval = open_approval(Approval(approval_id="T1"), request_, START).approval
        for who, approve in cast:
            decision = Decision(actor=who, approve=approve, at=START, groups=PROVES.get(who, []))
            approval = decide(approval, decision).approval
        return approval

    first, second = after(*earlier, one, two), after(*earlier, two, one)
    if one[0] == two[0]:
        return
    if first.outcome is None and second.outcome is None:
        assert {(d.actor, d.approve) for d in first.decisions} == {(d.actor, d.approve) for d in second.decisions}
        assert waits_for(first) == waits_for(second)
        assert first.refusals == second.refusals
    if one[1] == two[1] and first.outcome is not None and second.outcome is not None:
        assert first.outcome.outcome == second.outcome.outcome, "of two who agree, it is all the same who is first"


@given(requests(), st.integers(0, 40))
def test_left_alone_it_ends_as_its_last_stage_says(request_: ApprovalRequest, late: int):
    """However late the ends of stages are noticed, each stage has all of its time, and the chain comes to its end."""
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

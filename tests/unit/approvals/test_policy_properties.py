"""Properties of approvals under any sequence of actions at any times."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.approvals.messages import ApprovalResult, AuditEntry, Leave, Listen, Vote
from perdure.approvals.policy import Change, decide, end_stage, leave, listen, open_approval
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.schema import Approval
from perdure.security.user_names import ANYONE

START = datetime(2030, 1, 1, tzinfo=UTC)
PEOPLE = ["req", "ada", "bob", "cy", "dee", "eve"]
TIMEOUT = timedelta(minutes=20)


@st.composite
def requests(draw: st.DrawFn) -> ApprovalRequest:
    approvers = draw(st.lists(st.sampled_from(PEOPLE), max_size=5, unique=True))
    requester = draw(st.sampled_from(["", "req", "ada"]))
    able = [person for person in approvers if person != requester]
    if approvers and not able:
        approvers, able = [], []
    quorum = draw(st.integers(1, len(able) if approvers else 3))
    return ApprovalRequest(
        approval_id="T1",
        title="t",
        requester=requester,
        approvers=approvers,
        quorum=quorum,
        timeout=TIMEOUT,
        wait="a1",
        awakeable="a1",
    )


actions = st.one_of(
    st.tuples(st.just("decide"), st.sampled_from(PEOPLE), st.booleans()),
    st.tuples(st.just("decide"), st.sampled_from(PEOPLE), st.booleans()),
    st.tuples(st.just("open"), st.sampled_from(["a1", "a2", "a3"]), st.booleans()),
    st.tuples(st.just("listen"), st.sampled_from(["a1", "a2", "a3"]), st.booleans()),
    st.tuples(st.just("withdraw"), st.sampled_from(["a1", "a2", "a3"]), st.just(value=False)),
    st.tuples(st.just("expire"), st.just(""), st.just(value=False)),
)
times = st.lists(st.integers(0, 3), min_size=25, max_size=25)


def apply(approval: Approval, request: ApprovalRequest, action: tuple[str, str, bool], at: datetime) -> Change:
    kind, name, flag = action
    match kind:
        case "decide":
            return decide(approval, Vote(actor=name, approve=flag, at=at))
        case "open":
            asked = request.model_copy(
                update={"wait": name, "awakeable": name, "payload": "another" if flag and name == "a3" else None}
            )
            return open_approval(approval, asked, at)
        case "listen":
            return listen(approval, Listen(wait=name, awakeable=f"{name}-{flag}"), at)
        case "withdraw":
            return leave(approval, Leave(wait=name), at)
        case _:
            return end_stage(approval, at)


def can_still_be_approved(request: ApprovalRequest, approval: Approval) -> bool:
    """Return whether approvals of some remaining approvers would complete the quorum."""
    approvals = sum(vote.approve for vote in approval.votes)
    decided = {vote.actor for vote in approval.votes}
    left = [p for p in request.approvers if p not in decided and p != request.requester]
    return any(
        approvals + len(chosen) >= request.quorum
        for size in range(len(left) + 1)
        for chosen in combinations(left, size)
    )


def check_shape(request: ApprovalRequest, approval: Approval) -> None:
    actors = [vote.actor for vote in approval.votes]
    assert len(actors) == len(set(actors)), "one vote per person"
    if approval.rules is None:
        assert approval.pending_approvers() == set()
        return
    assert request.requester not in actors or request.requester == ""
    if request.approvers:
        assert set(actors) <= set(request.approvers)
    approvals = sum(vote.approve for vote in approval.votes)
    rejections = len(actors) - approvals
    outcome = None if approval.outcome is None else approval.outcome.outcome
    if outcome is ApprovalResult.APPROVED:
        assert approvals == request.quorum
    else:
        assert approvals < request.quorum
    unreachable = not can_still_be_approved(request, approval) if request.approvers else rejections >= request.quorum
    assert (outcome is ApprovalResult.REJECTED) == (unreachable and outcome is not ApprovalResult.APPROVED)
    if approval.outcome is not None:
        assert approval.pending_approvers() == set()
        assert approval.closed_at is not None
        assert approval.deadline is not None
        if outcome is not ApprovalResult.TIMED_OUT:
            assert approval.closed_at < approval.deadline, "only a timeout happens at the deadline"
        wanted = {ApprovalResult.APPROVED: True, ApprovalResult.REJECTED: False}.get(approval.outcome.outcome)
        assert approval.outcome.decided_by == [d.actor for d in approval.votes if d.approve is wanted]
    elif request.approvers:
        assert approval.pending_approvers() == set(request.approvers) - {request.requester} - set(actors)
    else:
        assert approval.pending_approvers() == {ANYONE}


@settings(max_examples=400)
@given(requests(), st.lists(actions, max_size=25), times)
def test_action_sequences_keep_invariants(
    request_: ApprovalRequest, sequence: list[tuple[str, str, bool]], minutes: list[int]
):
    approval = Approval(approval_id="T1")
    audit_log: list[AuditEntry] = []
    answered: Counter[str] = Counter()
    asking: set[str] = set()
    at = START
    for action, step in zip(sequence, minutes, strict=False):
        at += timedelta(minutes=step)
        before = approval
        change = apply(approval, request_, action, at)
        approval = change.approval
        check_shape(request_, approval)

        audit_log += change.entries
        assert [entry.seq for entry in audit_log] == list(range(1, approval.entries + 1)), "append-only, without gaps"
        assert all(entry.at == at for entry in change.entries)
        refused = [entry for entry in change.entries if entry.result.startswith("refused:")]
        assert approval.refusals - before.refusals == len(refused)

        if before.outcome is not None:
            assert approval.outcome == before.outcome, "an outcome is final"
            assert approval.votes == before.votes
        if before.rules is not None:
            assert approval.rules == before.rules
            assert approval.votes[: len(before.votes)] == before.votes
        if change.error is not None and not before.is_overdue(at):
            assert approval.outcome == before.outcome
            assert change.wake == ()

        if action[0] == "open" and change.error is None:
            asking.add(action[1])
            if approval.outcome is not None:
                answered[action[1]] += 1  # the call's own answer
        if action[0] == "listen":
            known = action[1] in {**approval.waiters, **dict.fromkeys(approval.answered)}
            assert (change.error is None) is known, "only known waits may read the outcome"
            assert before.is_overdue(at) or not change.entries, "completions of awakeables leave no audit entries"
        answered.update(awakeable.partition("-")[0] for awakeable in change.wake)
        assert approval.outcome is not None or not answered, "no waiter is woken before the end"
        if approval.outcome is not None:
            assert not approval.waiters
        else:
            assert set(approval.waiters) <= asking

        repeated = apply(approval, request_, action, at)
        if change.error is None:
            assert (repeated.approval, repeated.entries, repeated.error) == (approval, (), None), (
                "a repeat changes nothing"
            )

    assert set(answered) <= asking
    if approval.outcome is not None:
        left = [entry for entry in audit_log if entry.result == "left"]
        assert len(asking) - len(answered) <= len(left), "every remaining waiter gets the outcome"


@given(requests(), st.lists(st.tuples(st.sampled_from(PEOPLE), st.booleans()), max_size=12), st.integers(0, 12))
def test_outcome_is_independent_of_opening_time(request_: ApprovalRequest, votes: list[tuple[str, bool]], cut: int):
    """Early votes count like later ones, without contrary second votes."""
    first: dict[str, bool] = {}
    consistent = [(actor, first.setdefault(actor, approve)) for actor, approve in votes]

    def outcome(opened_after: int) -> tuple[object, tuple[str, ...]]:
        approval = Approval(approval_id="T1")
        for number, (actor, approve) in enumerate(consistent):
            if number == opened_after:
                approval = open_approval(approval, request_, START).approval
            approval = decide(approval, Vote(actor=actor, approve=approve, at=START)).approval
        if approval.rules is None:
            approval = open_approval(approval, request_, START).approval
        return approval.outcome, tuple(vote.actor for vote in approval.votes)

    assert outcome(cut) == outcome(0)

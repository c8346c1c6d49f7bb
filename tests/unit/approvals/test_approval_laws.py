"""What holds for approvals whatever happens to them: any acts, in any order, at any time."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.approvals.messages import ApprovalResult, AuditEntry, Decision, Leave, Listen
from perdure.approvals.policy import Approval, Change, decide, end_stage, leave, listen, open_approval, waits_for
from perdure.approvals.request import ApprovalRequest
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


acts = st.one_of(
    st.tuples(st.just("decide"), st.sampled_from(PEOPLE), st.booleans()),
    st.tuples(st.just("decide"), st.sampled_from(PEOPLE), st.booleans()),
    st.tuples(st.just("open"), st.sampled_from(["a1", "a2", "a3"]), st.booleans()),
    st.tuples(st.just("listen"), st.sampled_from(["a1", "a2", "a3"]), st.booleans()),
    st.tuples(st.just("withdraw"), st.sampled_from(["a1", "a2", "a3"]), st.just(value=False)),
    st.tuples(st.just("expire"), st.just(""), st.just(value=False)),
)
times = st.lists(st.integers(0, 3), min_size=25, max_size=25)


def act_on(approval: Approval, request: ApprovalRequest, act: tuple[str, str, bool], at: datetime) -> Change:
    kind, name, flag = act
    match kind:
        case "decide":
            return decide(approval, Decision(actor=name, approve=flag, at=at))
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
    """Try it: is there a set of people who have not decided and whose approvals would complete the quorum?"""
    approvals = sum(decision.approve for decision in approval.decisions)
    decided = {decision.actor for decision in approval.decisions}
    left = [p for p in request.approvers if p not in decided and p != request.requester]
    return any(
        approvals + len(chosen) >= request.quorum
        for size in range(len(left) + 1)
        for chosen in combinations(left, size)
    )


def check_shape(request: ApprovalRequest, approval: Approval) -> None:
    actors = [decision.actor for decision in approval.decisions]
    assert len(actors) == len(set(actors)), "one decision per person"
    if approval.rules is None:
        assert waits_for(approval) == set()
        return
    assert request.requester not in actors or request.requester == ""
    if request.approvers:
        assert set(actors) <= set(request.approvers)
    approvals = sum(decision.approve for decision in approval.decisions)
    rejections = len(actors) - approvals
    outcome = None if approval.outcome is None else approval.outcome.outcome
    if outcome is ApprovalResult.APPROVED:
        assert approvals == request.quorum
    else:
        assert approvals < request.quorum
    unreachable = not can_still_be_approved(request, approval) if request.approvers else rejections >= request.quorum
    assert (outcome is ApprovalResult.REJECTED) == (unreachable and outcome is not ApprovalResult.APPROVED)
    if approval.outcome is not None:
        assert waits_for(approval) == set()
        assert approval.closed_at is not None
        assert approval.deadline is not None
        if outcome is not ApprovalResult.TIMED_OUT:
            assert approval.closed_at < approval.deadline, "only time runs out at the deadline"
        wanted = {ApprovalResult.APPROVED: True, ApprovalResult.REJECTED: False}.get(approval.outcome.outcome)
        assert approval.outcome.decided_by == [d.actor for d in approval.decisions if d.approve is wanted]
    elif request.approvers:
        assert waits_for(approval) == set(request.approvers) - {request.requester} - set(actors)
    else:
        assert waits_for(approval) == {ANYONE}


@settings(max_examples=4 * settings.default.max_examples)
@given(requests(), st.lists(acts, max_size=25), times)
def test_laws(request_: ApprovalRequest, sequence: list[tuple[str, str, bool]], minutes: list[int]):
    approval = Approval(approval_id="T1")
    audit_log: list[AuditEntry] = []
    answered: Counter[str] = Counter()
    asking: set[str] = set()
    at = START
    for act, step in zip(sequence, minutes, strict=False):
        at += timedelta(minutes=step)
        before = approval
        change = act_on(approval, request_, act, at)
        approval = change.approval
        check_shape(request_, approval)

        audit_log += change.entries
        assert [entry.seq for entry in audit_log] == list(range(1, approval.entries + 1)), "append-only, without gaps"
        assert all(entry.at == at for entry in change.entries)
        refused = [entry for entry in change.entries if entry.result.startswith("refused:")]
        assert approval.refusals - before.refusals == len(refused)

        if before.outcome is not None:
            assert approval.outcome == before.outcome, "an outcome is final"
            assert approval.decisions == before.decisions
        if before.rules is not None:
            assert approval.rules == before.rules
            assert approval.decisions[: len(before.decisions)] == before.decisions
        if change.error is not None and not before.overdue(at):
            assert approval.outcome == before.outcome
            assert change.wake == ()

        if act[0] == "open" and change.error is None:
            asking.add(act[1])
            if approval.outcome is not None:
                answered[act[1]] += 1  # the call's own answer
        if act[0] == "listen":
            known = act[1] in {**approval.waiters, **dict.fromkeys(approval.answered)}
            assert (change.error is None) is known, "only who was waiting may read the outcome"
            assert before.overdue(at) or not change.entries, "completions of awakeables leave no audit entries"
        answered.update(awakeable.partition("-")[0] for awakeable in change.wake)
        assert approval.outcome is not None or not answered, "nobody is answered before the end"
        if approval.outcome is not None:
            assert not approval.waiters
        else:
            assert set(approval.waiters) <= asking

        repeated = act_on(approval, request_, act, at)
        if change.error is None:
            assert (repeated.approval, repeated.entries, repeated.error) == (approval, (), None), (
                "a repeat changes nothing"
            )

    assert set(answered) <= asking
    if approval.outcome is not None:
        left = [entry for entry in audit_log if entry.result == "left"]
        assert len(asking) - len(answered) <= len(left), "who asked and did not leave is answered"


@given(requests(), st.lists(st.tuples(st.sampled_from(PEOPLE), st.booleans()), max_size=12), st.integers(0, 12))
def test_it_makes_no_difference_when_it_was_opened(request_: ApprovalRequest, votes: list[tuple[str, bool]], cut: int):
    """Decisions before the opening count like decisions after it, as long as nobody contradicts themselves."""
    first: dict[str, bool] = {}
    consistent = [(actor, first.setdefault(actor, approve)) for actor, approve in votes]

    def outcome(opened_after: int) -> tuple[object, tuple[str, ...]]:
        approval = Approval(approval_id="T1")
        for number, (actor, approve) in enumerate(consistent):
            if number == opened_after:
                approval = open_approval(approval, request_, START).approval
            approval = decide(approval, Decision(actor=actor, approve=approve, at=START)).approval
        if approval.rules is None:
            approval = open_approval(approval, request_, START).approval
        return approval.outcome, tuple(decision.actor for decision in approval.decisions)

    assert outcome(cut) == outcome(0)

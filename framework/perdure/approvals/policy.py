"""Who may decide, and when it is decided: pure data and pure functions, no engine.

Each function takes an approval as far as it has come and returns a `Change`: the approval afterwards, what to add to
its trail, whose wait is over, and the error to raise when the act was refused. A refusal is a change too, since it is
recorded.

Rules of a later version (delegation, groups, veto, escalation) belong into `Rules`; an approval waits for whom
`waits_for` says, so the inboxes follow by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from perdure.approvals.messages import (
    ApprovalOutcome,
    ApprovalRequest,
    ApprovalResult,
    ApprovalState,
    AuditEntry,
    Decision,
    Withdrawal,
)
from perdure.approvals.people import ANYONE
from perdure.errors import Conflict, NotFound, PerdureTerminalError, Refused, error_code
from perdure.saga.plan import canonical
from perdure.serdes import serde_for

MAX_EARLY_DECISIONS: Final = 100
"""How many people can decide before an approval is opened; anyone can send these, for any id."""

MAX_RECORDED_REFUSALS: Final = 200
"""How many refused acts one trail holds; later ones are only counted, so that nobody can fill the state with them."""

_RESULT_OF: Final = {True: ApprovalResult.APPROVED, False: ApprovalResult.REJECTED}


class Rules(BaseModel):
    """Who may decide one approval, and how many must agree.

    Args:
        requester: Who asked; empty when it was nobody in particular.
        approvers: Who may decide; anyone but the requester when empty.
        quorum: How many approvals are needed.
        payload_digest: What was asked, see `payload_digest`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    requester: str
    approvers: tuple[str, ...]
    quorum: int
    payload_digest: str

    @classmethod
    def of(cls, request: ApprovalRequest) -> Rules:
        """Return the rules of a request."""
        return cls(
            requester=request.requester,
            approvers=tuple(sorted(request.approvers)),
            quorum=request.quorum,
            payload_digest=payload_digest(request.payload),
        )

    @property
    def able(self) -> tuple[str, ...]:
        """The approvers who may decide; empty when anyone but the requester may."""
        return tuple(person for person in self.approvers if person != self.requester)

    def objection(self, actor: str) -> PerdureTerminalError | None:
        """Return why someone may not decide; None when they may."""
        if actor == self.requester:
            return Refused(f"{actor} asked for this approval and may not decide it", 403, "own_request")
        if self.approvers and actor not in self.approvers:
            return Refused(f"{actor} is not among the approvers", 403, "not_an_approver")
        return None

    def result(self, decisions: Iterable[Decision]) -> ApprovalResult | None:
        """Return what decisions of different people come to; None while more are needed.

        With approvers named, it is rejected once those who are left can't reach the quorum. When anyone may decide,
        nobody knows how many are left: then as many rejections reject as approvals approve.
        """
        votes = [decision.approve for decision in decisions]
        approvals, rejections = votes.count(True), votes.count(False)
        if approvals >= self.quorum:
            return ApprovalResult.APPROVED
        enough_to_reject = len(self.able) - self.quorum + 1 if self.approvers else self.quorum
        return ApprovalResult.REJECTED if rejections >= enough_to_reject else None


class Approval(BaseModel):
    """An approval as far as it has come.

    Args:
        approval_id: Its id.
        rules: Who may decide; None until it is opened.
        opened_at: When it was opened.
        deadline: Until when it can be decided.
        closed_at: When it ended.
        decisions: What was decided, one for each person; until it is opened, not yet checked against the rules.
        waiters: Awakeables of those who wait for the outcome.
        outcome: How it ended; None until then, and never changed again.
        entries: How long the trail is.
        refusals: How many acts were refused.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    approval_id: str
    rules: Rules | None = None
    opened_at: AwareDatetime | None = None
    deadline: AwareDatetime | None = None
    closed_at: AwareDatetime | None = None
    decisions: tuple[Decision, ...] = ()
    waiters: tuple[str, ...] = ()
    outcome: ApprovalOutcome | None = None
    entries: int = 0
    refusals: int = 0

    @property
    def state(self) -> ApprovalState:
        """How it stands."""
        if self.outcome is not None:
            return self.outcome.outcome
        return "expected" if self.rules is None else "open"

    def decision_of(self, person: str) -> Decision | None:
        """Return what someone decided, if anything."""
        return next((decision for decision in self.decisions if decision.actor == person), None)

    def overdue(self, at: datetime) -> bool:
        """Tell if it is open still, though its time is over."""
        return self.outcome is None and self.deadline is not None and at >= self.deadline


@dataclass(frozen=True)
class Change:
    """What one act does to an approval.

    Args:
        approval: The approval afterwards.
        entries: What to add to the trail.
        answer: Awakeables of those who are to be told the outcome now.
        error: What to raise, once the rest is recorded; None when the act was accepted.
    """

    approval: Approval
    entries: tuple[AuditEntry, ...] = ()
    answer: tuple[str, ...] = ()
    error: PerdureTerminalError | None = None

    def then(self, act: Callable[[Approval], Change]) -> Change:
        """Return this change followed by another; the error is the later one's."""
        later = act(self.approval)
        return replace(later, entries=self.entries + later.entries, answer=self.answer + later.answer)


@dataclass(frozen=True)
class _Act:
    """Who does what, when, and why: the part of a trail's entry that is known before the result."""

    at: datetime
    actor: str | None
    act: Literal["open", "approve", "reject", "expire", "withdraw"]
    reason: str


def payload_digest(payload: JsonValue) -> str:
    """Return the SHA-256 of a payload's canonical JSON, in hexadecimal: the order of keys does not matter."""
    return hashlib.sha256(canonical(serde_for(object).serialize(payload)).encode()).hexdigest()


def waits_for(approval: Approval) -> frozenset[str]:
    """Return whose decision an approval waits for: people, or `ANYONE`; nobody unless it is open."""
    if approval.rules is None or approval.outcome is not None:
        return frozenset()
    if not approval.rules.approvers:
        return frozenset({ANYONE})
    return frozenset(approval.rules.able) - {decision.actor for decision in approval.decisions}


def open_approval(approval: Approval, request: ApprovalRequest, at: datetime) -> Change:
    """Open an approval, or join one that asks the same.

    Decisions that came before are counted now, in their order, as far as the rules allow. Whoever opens an approval
    again with the same requester, approvers, quorum and payload gets the outcome of the first one, also after its end.

    Args:
        approval: The approval before.
        request: What is asked, and who waits for the outcome.
        at: When.
    """
    if approval.overdue(at):
        return expire(approval, at).then(partial(open_approval, request=request, at=at))
    rules = Rules.of(request)
    if approval.rules is not None:
        return _join(approval, request, rules, at)
    opened = approval.model_copy(
        update={
            "rules": rules,
            "opened_at": at,
            "deadline": at + request.timeout,
            "waiters": (request.awakeable,),
            "decisions": (),
        }
    )
    change = _recorded(opened, _Act(at, request.requester or None, "open", request.title), "opened")
    for early in approval.decisions:
        change = change.then(partial(_decide, decision=early, at=at))
    return replace(change, error=None)  # an early decision that is dropped is no fault of the opener


def decide(approval: Approval, decision: Decision) -> Change:
    """Take a person's decision.

    The same decision again changes nothing and is no error, also after the approval's end. A decision after the
    deadline finds the approval timed out, even when nobody has ended it yet.

    Args:
        approval: The approval before.
        decision: Who decides what, when.

    Returns:
        The change; its error is `Refused` 403 (``own_request``, ``not_an_approver``), `Conflict` 409
        (``contrary_decision``, ``too_late``), or `Refused` 429 (``too_many_early_decisions``).
    """
    return _decide(approval, decision, decision.at)


def expire(approval: Approval, at: datetime) -> Change:
    """End an approval because its time is over; nothing happens unless it is open.

    Args:
        approval: The approval before.
        at: When.
    """
    if approval.rules is None or approval.outcome is not None:
        return Change(approval)
    approvals = sum(decision.approve for decision in approval.decisions)
    deadline = "" if approval.deadline is None else f" at {_moment(approval.deadline)}"
    reason = f"time was over{deadline} with {approvals} of {approval.rules.quorum} approvals"
    return _closed(approval, _Act(at, None, "expire", reason), ApprovalResult.TIMED_OUT, reason)


def withdraw(approval: Approval, withdrawal: Withdrawal, at: datetime) -> Change:
    """Take a waiter away, and end the approval when it was the last one.

    Nothing happens when the waiter is unknown, or the approval has ended.

    Args:
        approval: The approval before.
        withdrawal: Who no longer waits, and why.
        at: When.

    Returns:
        The change; its error is `NotFound` when the approval was never opened.
    """
    if approval.rules is None:
        return Change(approval, error=unknown(approval))
    if approval.overdue(at):
        return expire(approval, at)
    if approval.outcome is not None:
        return Change(approval)
    act = _Act(at, None, "withdraw", withdrawal.reason)
    if withdrawal.awakeable is not None:
        if withdrawal.awakeable not in approval.waiters:
            return Change(approval)
        left = tuple(waiter for waiter in approval.waiters if waiter != withdrawal.awakeable)
        if left:
            fewer = approval.model_copy(update={"waiters": left})
            return _recorded(fewer, act, "left")
    return _closed(approval, act, ApprovalResult.WITHDRAWN, withdrawal.reason or "withdrawn by who asked")


def unknown(approval: Approval) -> NotFound:
    """Return the error for an approval that was never opened."""
    early = len(approval.decisions)
    hint = f"; {early} early decision(s) are kept for it" if early else ""
    return NotFound(
        f"no approval '{approval.approval_id}' has been opened{hint}", metadata={"approval": approval.approval_id}
    )


def _decide(approval: Approval, decision: Decision, at: datetime) -> Change:
    if approval.overdue(at):
        return expire(approval, at).then(partial(_decide, decision=decision, at=at))
    act = _Act(at, decision.actor, decision.act, decision.reason)
    known = approval.decision_of(decision.actor)
    error = _objection(approval, decision, known)
    if error is not None:
        return _refused(approval, act, error)
    if known is not None:
        return Change(approval)
    decided = approval.model_copy(update={"decisions": (*approval.decisions, decision)})
    result = None if decided.rules is None else decided.rules.result(decided.decisions)
    if result is not None:
        return _closed(decided, act, result)
    return _recorded(decided, act, "kept" if decided.rules is None else "counted")


def _objection(approval: Approval, decision: Decision, known: Decision | None) -> PerdureTerminalError | None:
    if approval.rules is not None and (objection := approval.rules.objection(decision.actor)) is not None:
        return objection
    if known is not None:
        if known.approve == decision.approve:
            return None
        return Conflict(
            f"{decision.actor} decided '{known.act}' on approval '{approval.approval_id}' at {_moment(known.at)}, "
            "and each person decides once",
            metadata={"code": "contrary_decision", "decided": known.act, "decided_at": known.at.isoformat()},
        )
    if approval.outcome is not None:
        return _too_late(approval, approval.outcome)
    if approval.rules is None and len(approval.decisions) >= MAX_EARLY_DECISIONS:
        return Refused(
            f"approval '{approval.approval_id}' has not been opened, and {MAX_EARLY_DECISIONS} decisions wait for it",
            429,
            "too_many_early_decisions",
        )
    return None


def _too_late(approval: Approval, outcome: ApprovalOutcome) -> Conflict:
    what = "timed out" if outcome.outcome is ApprovalResult.TIMED_OUT else f"was {outcome.outcome}"
    who = f" by {', '.join(outcome.decided_by)}" if outcome.decided_by else ""
    when = "" if approval.closed_at is None else _moment(approval.closed_at)
    return Conflict(
        f"approval '{approval.approval_id}' {what}{who} at {when}; it can't be decided any more",
        metadata={
            "code": "too_late",
            "outcome": outcome.outcome.value,
            "decided_by": ", ".join(outcome.decided_by),
            "decided_at": when,
        },
    )


def _join(approval: Approval, request: ApprovalRequest, rules: Rules, at: datetime) -> Change:
    act = _Act(at, request.requester or None, "open", request.title)
    if rules != approval.rules:
        error = Conflict(
            f"approval '{approval.approval_id}' is already about something else: its requester, approvers, quorum or "
            "payload differ; give each question an id of its own",
            metadata={"code": "another_question"},
        )
        return _refused(approval, act, error)
    if approval.outcome is not None:
        return Change(approval, answer=(request.awakeable,))
    if request.awakeable in approval.waiters:
        return Change(approval)
    joined = approval.model_copy(update={"waiters": (*approval.waiters, request.awakeable)})
    return _recorded(joined, act, "joined")


def _closed(approval: Approval, act: _Act, result: ApprovalResult, reason: str = "") -> Change:
    deciding = [decision for decision in approval.decisions if result == _RESULT_OF[decision.approve]]
    outcome = ApprovalOutcome(
        approval_id=approval.approval_id,
        outcome=result,
        decided_by=[decision.actor for decision in deciding],
        reason=reason or _reasons(deciding),
    )
    closed = approval.model_copy(update={"outcome": outcome, "closed_at": act.at, "waiters": ()})
    return replace(_recorded(closed, act, result.value), answer=approval.waiters)


def _reasons(decisions: list[Decision]) -> str:
    if len(decisions) == 1:
        return decisions[0].reason
    return "; ".join(f"{decision.actor}: {decision.reason}" for decision in decisions if decision.reason)


def _recorded(approval: Approval, act: _Act, result: str) -> Change:
    longer = approval.model_copy(update={"entries": approval.entries + 1})
    entry = AuditEntry(seq=longer.entries, at=act.at, actor=act.actor, act=act.act, reason=act.reason, result=result)
    return Change(longer, (entry,))


def _refused(approval: Approval, act: _Act, error: PerdureTerminalError) -> Change:
    counted = approval.model_copy(update={"refusals": approval.refusals + 1})
    if approval.refusals >= MAX_RECORDED_REFUSALS:
        return Change(counted, error=error)
    return replace(_recorded(counted, act, f"refused:{error_code(error)}"), error=error)


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="seconds")

"""What happens to an approval, act by act: pure functions, no engine.

Each function takes an approval as far as it has come and returns a `Change`: the approval afterwards, what to add to
its audit log, whose wait is over, whom to tell, and the error to raise when the act was refused. A refusal is a change
too, since it is recorded.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from perdure.approvals.approval import Approval, Attempt, Change, News, waits_for
from perdure.approvals.eligibility import (
    MAX_DELEGATIONS,
    MAX_EARLY_DECISIONS,
    admitted,
    contrary,
    moment,
    objection_to_delegating,
    objection_to_revoking,
    too_late,
)
from perdure.approvals.messages import (
    ApprovalOutcome,
    ApprovalResult,
    Decision,
    Delegation,
    Leave,
    Listen,
)
from perdure.approvals.request import ApprovalRequest, OnTimeout
from perdure.approvals.rules import Rules, payload_digest
from perdure.errors import Conflict, NotFound, PerdureTerminalError, Refused, error_code
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import ANYONE

__all__ = [
    "MAX_DELEGATION",
    "MAX_DELEGATIONS",
    "MAX_EARLY_DECISIONS",
    "Approval",
    "Attempt",
    "Change",
    "decide",
    "delegate",
    "end_stage",
    "leave",
    "listen",
    "open_approval",
    "payload_digest",
    "refuse",
    "remind",
    "revoke_delegation",
    "revoke_links",
    "unknown",
    "waits_for",
    "withdraw",
]

MAX_DELEGATION: Final = timedelta(days=30)
"""How long a delegation may last, unless it is said otherwise."""

MAX_RECORDED_REFUSALS: Final = 200
"""Maximum number of refused actions in one audit log; further ones are only counted, to bound the state."""

_ENDS_AS: Final = {
    OnTimeout.ERROR: ApprovalResult.TIMED_OUT,
    OnTimeout.REJECT: ApprovalResult.REJECTED,
    OnTimeout.APPROVE: ApprovalResult.APPROVED,
}


def open_approval(approval: Approval, request: ApprovalRequest, at: datetime) -> Change:
    """Open an approval, or join one that asks the same.

    Decisions that came before are counted now, in their order, as far as the rules allow. Whoever opens an approval
    again with the same question gets the outcome of the first one, also after its end.

    Args:
        approval: The approval before.
        request: What is asked, and who waits for the outcome.
        at: When.
    """
    if approval.overdue(at):
        return end_stage(approval, at).then(partial(open_approval, request=request, at=at))
    rules = Rules.of(request)
    attempt = Attempt(at, request.requester or None, "open", request.title, details=_opening(request, rules))
    if approval.rules is not None:
        return _join(approval, approval.rules, request, rules, attempt)
    opened = approval.model_copy(
        update={
            "rules": rules,
            "opened_at": at,
            "deadline": at + request.timeout,
            "waiters": {request.wait: request.awakeable},
            "decisions": (),
        }
    )
    change = replace(attempt.recorded(opened, "opened"), news=(News("asked"),))
    for early in approval.decisions:
        facts = {} if early.signed else {"unsigned": "yes"}
        change = change.then(
            partial(_decide, decision=early, attempt=Attempt(at, early.actor, early.act, early.reason, facts))
        )
    return replace(change, error=None)  # an early decision that is dropped is no fault of the opener


def _opening(request: ApprovalRequest, rules: Rules) -> dict[str, str]:
    """Return the audit details of a request: requester verified or not, the owner of its API key, the subject."""
    facts = {
        "requester": ("verified" if request.requester_verified else "unverified") if request.requester else "",
        "owner": request.requester_owner,
        "subject": request.subject,
    }
    return {"payload_digest": rules.payload_digest, **{name: fact for name, fact in facts.items() if fact}}


def decide(approval: Approval, decision: Decision, proof: SignedAction | None = None, *, by: str = "") -> Change:
    """Take a person's decision.

    The same decision again changes nothing and is no error, also after the approval's end. A decision after the
    deadline finds the stage ended, even when nobody has ended it yet.

    Args:
        approval: The approval before.
        decision: Who decides what, when; in whose place is found here.
        proof: The act as it was signed, for the audit log.
        by: By what means, for the audit log; ``link``, or nothing.

    Returns:
        The change; its error is `Refused` 403 (``own_request``, ``not_an_approver``), `Conflict` 409
        (``contrary_decision``, ``seat_taken``, ``too_late``, ``wrong_payload``), or `Refused` 429
        (``too_many_early_decisions``).
    """
    facts = {**({"by": by} if by else {}), **({} if decision.signed else {"unsigned": "yes"})}
    return _decide(
        approval, decision, Attempt(decision.at, decision.actor, decision.act, decision.reason, facts, proof)
    )


def delegate(
    approval: Approval,
    delegation: Delegation,
    proof: SignedAction | None = None,
    *,
    longest: timedelta = MAX_DELEGATION,
) -> Change:
    """Delegate an approver's vote to another person, once, until an end, and never longer than the approval lasts.

    It replaces a delegation that the same person made before. It can't be passed on, and it isn't given to the
    requester or to somebody who may decide anyway: nobody has two votes. Whichever of the two decides first uses it.

    Args:
        approval: The approval before.
        delegation: Who delegates to whom, until when.
        proof: The act as it was signed, for the audit log.
        longest: How long a delegation may last.

    Returns:
        The change; its error is `NotFound`, `InvalidInput` (an end in the past, or too far ahead), `Refused` 403
        (``own_request``, ``not_an_approver``, ``delegation_to_requester``), `Conflict` 409 (``seat_taken``,
        ``delegate_may_decide``, ``too_late``) or `Refused` 429 (``too_many_delegations``).
    """
    if approval.rules is None:
        return Change(approval, error=unknown(approval))
    if approval.overdue(delegation.at):
        return end_stage(approval, delegation.at).then(
            partial(delegate, delegation=delegation, proof=proof, longest=longest)
        )
    # To the microsecond: it is part of what was signed.
    details = {"to": delegation.to, "until": delegation.until.astimezone(UTC).isoformat()}
    attempt = Attempt(delegation.at, delegation.actor, "delegate", delegation.reason, details, proof)
    before = approval.delegation_of(delegation.actor)
    error = objection_to_delegating(approval, approval.rules, delegation, longest)
    if error is not None:
        return refuse(approval, attempt, error)
    if (last := approval.last_deadline()) is not None:
        delegation = delegation.model_copy(update={"until": min(delegation.until, last)})
    if (
        before is not None
        and before.revoked_at is None
        and (before.to, before.until) == (delegation.to, delegation.until)
    ):
        return Change(approval)
    others = tuple(each for each in approval.delegations if each.actor != delegation.actor)
    change = attempt.recorded(approval.model_copy(update={"delegations": (*others, delegation)}), "delegated")
    return replace(change, news=(News("delegated", to=delegation.to),))


def end_stage(approval: Approval, at: datetime) -> Change:
    """End a stage because its time is over: the next one begins, or the approval ends as its rules say.

    Nothing happens unless the approval is open. The next stage's time begins now: those who are asked then have all of
    it, however late it was noticed.

    Args:
        approval: The approval before.
        at: When.
    """
    if approval.rules is None or approval.stage_rules is None or approval.outcome is not None:
        return Change(approval)
    stage = approval.stage_rules
    approvals = sum(decision.approve for decision in approval.rules.counted(approval.stage, approval.decisions))
    deadline = "" if approval.deadline is None else f" at {moment(approval.deadline)}"
    reason = f"time was over{deadline} with {approvals} of {stage.quorum} approvals"
    if stage.on_timeout is not OnTimeout.ESCALATE:
        result = _ENDS_AS[stage.on_timeout]
        if result is not ApprovalResult.TIMED_OUT:
            reason += f", which {'approves' if result is ApprovalResult.APPROVED else 'rejects'}"
        return _closed(approval, Attempt(at, None, "expire", reason), result, [], reason)
    number = approval.stage + 1
    following = approval.rules.stages[number]
    entered = approval.model_copy(update={"stage": number, "deadline": at + following.timeout, "reminders": 0})
    attempt = Attempt(at, None, "escalate", reason, details={"stage": str(number)})
    # Decisions of those who are approvers here, too, may be enough already.
    decided = approval.rules.deciding(number, approval.decisions)
    change = replace(attempt.recorded(entered, "escalated"), news=(News("escalated"),))
    if decided is None:
        return change
    result, deciding = decided
    end = Attempt(at, None, "escalate", "decided by those who had decided before")
    return change.then(lambda there: _decided(there, end, result, deciding))


def remind(approval: Approval, stage: int, number: int, at: datetime) -> Change:
    """Remind those whom an approval waits for; nothing happens unless it is the next reminder of this stage.

    Args:
        approval: The approval before.
        stage: The stage that the reminder belongs to.
        number: 1 for the stage's first reminder.
        at: When.
    """
    if approval.outcome is not None or approval.overdue(at):
        return Change(approval)
    if approval.rules is None or (approval.stage, approval.reminders + 1) != (stage, number):
        return Change(approval)
    reminded = approval.model_copy(update={"reminders": number})
    attempt = Attempt(at, None, "remind", details={"number": str(number), "to": ", ".join(sorted(waits_for(approval)))})
    return replace(attempt.recorded(reminded, "reminded"), news=(News("reminder", number=number),))


def withdraw(approval: Approval, actor: str, reason: str, at: datetime, proof: SignedAction | None = None) -> Change:
    """End an approval because who asked for it no longer wants it. The same again is no error.

    Args:
        approval: The approval before.
        actor: Who; only the requester may, and for a program the owner of its API key.
        reason: Why.
        at: When.
        proof: The act as it was signed, for the audit log.

    Returns:
        The change; its error is `NotFound`, `Refused` 403 (``not_the_requester``) or `Conflict` 409 (``too_late``).
    """
    if approval.rules is None:
        return Change(approval, error=unknown(approval))
    if approval.overdue(at):
        return end_stage(approval, at).then(partial(withdraw, actor=actor, reason=reason, at=at, proof=proof))
    attempt = Attempt(at, actor, "withdraw", reason, proof=proof)
    if actor not in (approval.rules.requester, approval.rules.requester_owner):
        return refuse(approval, attempt, Refused(f"{actor} did not ask for this approval", 403, "not_the_requester"))
    if approval.outcome is not None:
        if approval.outcome.outcome is ApprovalResult.WITHDRAWN:
            return Change(approval)
        return refuse(approval, attempt, too_late(approval, approval.outcome))
    return _closed(approval, attempt, ApprovalResult.WITHDRAWN, [actor], reason or f"withdrawn by {actor}")


def revoke_delegation(approval: Approval, actor: str, why: str, at: datetime) -> Change:
    """Mark a delegation as revoked, since the rights of the person who delegated, or of the delegate, were withdrawn.

    Nothing happens unless the delegation can be used still. It stays revoked, also when the rights are given back; a
    new delegation replaces it.

    Args:
        approval: The approval before.
        actor: The person who delegated.
        why: Why, for the audit log.
        at: When it was found.
    """
    revoked = approval.delegation_of(actor)
    if revoked is None or not approval.grants(revoked):
        return Change(approval)
    attempt = Attempt(at, None, "revoke_delegation", why, details={"of": actor, "to": revoked.to})
    others = tuple(
        each.model_copy(update={"revoked_at": at}) if each is revoked else each for each in approval.delegations
    )
    return attempt.recorded(approval.model_copy(update={"delegations": others}), "revoked")


def revoke_links(
    approval: Approval,
    actor: str,
    person: str | None,
    at: datetime,
    *,
    reason: str = "",
    proof: SignedAction | None = None,
    may_revoke: bool,
) -> Change:
    """End the links to an approval that were issued up to now: one person's, or everybody's.

    Args:
        approval: The approval before.
        actor: Who revokes them.
        person: The person whose links end; None for everybody's.
        at: When. Links that are issued later decide.
        reason: Why.
        proof: The action as it was signed, for the audit log.
        may_revoke: Whether the actor's role allows to revoke links of others.

    Returns:
        The change; its error is `NotFound`, `Refused` 403 (``not_allowed_to_revoke``) or `Conflict` 409
        (``too_late``).
    """
    if approval.rules is None:
        return Change(approval, error=unknown(approval))
    if approval.overdue(at):
        return end_stage(approval, at).then(
            partial(revoke_links, actor=actor, person=person, reason=reason, at=at, proof=proof, may_revoke=may_revoke)
        )
    attempt = Attempt(at, actor, "revoke_links", reason, {} if person is None else {"person": person}, proof)
    error = objection_to_revoking(approval, approval.rules, actor, person, may_revoke=may_revoke)
    if error is not None:
        return refuse(approval, attempt, error)
    revoked = {**approval.links_revoked, person or ANYONE: at}
    if person is None:  # covers all links so far, those of single people included
        revoked = {ANYONE: at}
    return attempt.recorded(approval.model_copy(update={"links_revoked": revoked}), "revoked")


def leave(approval: Approval, wish: Leave, at: datetime) -> Change:
    """Take a waiter away, and end the approval when it was the last one.

    Nothing happens when the waiter is unknown, or the approval has ended.

    Args:
        approval: The approval before.
        wish: Who no longer waits, and why.
        at: When.

    Returns:
        The change; its error is `NotFound` when the approval was never opened.
    """
    if approval.rules is None:
        return Change(approval, error=unknown(approval))
    if approval.overdue(at):
        return end_stage(approval, at).then(partial(leave, wish=wish, at=at))
    if approval.outcome is not None:
        return Change(approval)
    attempt = Attempt(at, None, "leave", wish.reason)
    if wish.wait is not None:
        if wish.wait not in approval.waiters:
            return Change(approval)
        left = {wait: awakeable for wait, awakeable in approval.waiters.items() if wait != wish.wait}
        if left:
            return attempt.recorded(approval.model_copy(update={"waiters": left}), "left")
    return _closed(approval, attempt, ApprovalResult.WITHDRAWN, [], wish.reason or "withdrawn by who asked")


def listen(approval: Approval, wish: Listen, at: datetime) -> Change:
    """Have a waiter woken by another awakeable; the one before was completed, perhaps by a stranger.

    It adds no audit entry: a client that completes awakeables could otherwise make the audit log grow.

    Args:
        approval: The approval before.
        wish: Which wait, and what wakes it now.
        at: When.

    Returns:
        The change; its error is `NotFound` when the approval does not know the wait. An approval that was deleted, or
        another one of the same id, has no outcome for it.
    """
    if approval.overdue(at):
        return end_stage(approval, at).then(partial(listen, wish=wish, at=at))
    if wish.wait in approval.waiters:
        return Change(approval.model_copy(update={"waiters": {**approval.waiters, wish.wait: wish.awakeable}}))
    if wish.wait in approval.answered:
        return Change(approval)
    return Change(
        approval,
        error=NotFound(
            f"approval '{approval.approval_id}' does not know who waits: the approval that was asked for has been "
            "deleted since, so its outcome is unknown; start again, with another approval id",
            metadata={"approval": approval.approval_id, "code": "unknown_wait"},
        ),
    )


def refuse(approval: Approval, attempt: Attempt, error: PerdureTerminalError) -> Change:
    """Record an act that is refused, and count it.

    Args:
        approval: The approval before.
        attempt: What was tried.
        error: Why not.
    """
    counted = approval.model_copy(update={"refusals": approval.refusals + 1})
    if approval.refusals >= MAX_RECORDED_REFUSALS:
        return Change(counted, error=error)
    why = {"why": error.metadata["why"]} if error.metadata and "why" in error.metadata else {}
    return replace(attempt.recorded(counted, f"refused:{error_code(error)}", **why), error=error)


def unknown(approval: Approval) -> NotFound:
    """Return the error for an approval that was never opened."""
    early = len(approval.decisions)
    hint = f"; {early} early decision(s) are kept for it" if early else ""
    return NotFound(
        f"no approval '{approval.approval_id}' has been opened{hint}", metadata={"approval": approval.approval_id}
    )


def _decide(approval: Approval, decision: Decision, attempt: Attempt) -> Change:
    if approval.overdue(attempt.at):
        return end_stage(approval, attempt.at).then(partial(_decide, decision=decision, attempt=attempt))
    known = approval.decision_of(decision.actor)
    if known is not None and known.approve == decision.approve:
        return Change(approval)
    seated = contrary(approval, decision, known) if known else admitted(approval, decision, attempt.at)
    if not isinstance(seated, Decision):
        return refuse(approval, attempt, seated)
    if seated.on_behalf_of is not None:
        attempt = replace(attempt, details={**(attempt.details or {}), "on_behalf_of": seated.on_behalf_of})
    decided = approval.model_copy(update={"decisions": (*approval.decisions, seated)})
    if decided.rules is None:
        return attempt.recorded(decided, "kept")
    result = decided.rules.deciding(decided.stage, decided.decisions)
    if result is not None:
        return _decided(decided, attempt, *result)
    return attempt.recorded(decided, "counted")


def _join(approval: Approval, rules: Rules, request: ApprovalRequest, asked: Rules, attempt: Attempt) -> Change:
    if not rules.asks_the_same(asked):
        error = Conflict(
            f"approval '{approval.approval_id}' is already about something else: its requester, subject, approvers, "
            "quorum, veto, stages or payload differ; give each question an id of its own",
            metadata={"code": "another_question"},
        )
        return refuse(approval, attempt, error)
    if approval.outcome is not None or request.wait in approval.waiters:
        return Change(approval)
    waiters = {**approval.waiters, request.wait: request.awakeable}
    return attempt.recorded(approval.model_copy(update={"waiters": waiters}), "joined")


def _decided(approval: Approval, attempt: Attempt, result: ApprovalResult, deciding: list[Decision]) -> Change:
    return _closed(approval, attempt, result, [decision.actor for decision in deciding], _reasons(deciding))


def _closed(approval: Approval, attempt: Attempt, result: ApprovalResult, by: list[str], reason: str) -> Change:
    outcome = ApprovalOutcome(approval_id=approval.approval_id, outcome=result, decided_by=by, reason=reason)
    facts = {"outcome": outcome, "closed_at": attempt.at, "waiters": {}, "answered": tuple(approval.waiters)}
    closed = approval.model_copy(update=facts)
    return replace(attempt.recorded(closed, result.value), wake=tuple(approval.waiters.values()))


def _reasons(decisions: list[Decision]) -> str:
    if len(decisions) == 1:
        return decisions[0].reason
    return "; ".join(f"{decision.actor}: {decision.reason}" for decision in decisions if decision.reason)

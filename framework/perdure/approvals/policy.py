"""State transitions of an approval. Pure functions: each takes an approval and returns a `Change`.

A refused action is a change too: it adds an audit entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from perdure.approvals.audit_log import chained
from perdure.approvals.eligibility import (
    check_vote,
    contrary_vote,
    delegation_error,
    format_time,
    revocation_error,
    too_late,
)
from perdure.approvals.messages import (
    ActionName,
    ApprovalOutcome,
    ApprovalResult,
    AuditEntry,
    Delegation,
    Leave,
    Listen,
    NotificationKind,
    Vote,
)
from perdure.approvals.request import ApprovalRequest, OnTimeout
from perdure.approvals.schema import Approval, Rules
from perdure.errors import Conflict, NotFound, PerdureTerminalError, Refused, error_code
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import ANYONE

MAX_DELEGATION: Final = timedelta(days=30)
"""Default maximum duration of a delegation."""

MAX_RECORDED_REFUSALS: Final = 200
"""Maximum number of refused actions in one audit log; further ones are only counted, to bound the state."""

_TIMEOUT_RESULTS: Final = {
    OnTimeout.ERROR: ApprovalResult.TIMED_OUT,
    OnTimeout.REJECT: ApprovalResult.REJECTED,
    OnTimeout.APPROVE: ApprovalResult.APPROVED,
}


@dataclass(frozen=True)
class PendingNotification:
    """Notification to send: to one person, or to all pending approvers."""

    kind: NotificationKind
    to: str | None = None
    number: int = 0


@dataclass(frozen=True)
class Change:
    """Effect of one action.

    Args:
        approval: The approval after the action.
        entries: New audit entries.
        wake: Awakeables of the waiters, to complete now.
        notifications: Notifications to send.
        error: Error to raise after the change is stored; None for an accepted action.
    """

    approval: Approval
    entries: tuple[AuditEntry, ...] = ()
    wake: tuple[str, ...] = ()
    notifications: tuple[PendingNotification, ...] = ()
    error: PerdureTerminalError | None = None

    def then(self, action: Callable[[Approval], Change]) -> Change:
        """Return this change followed by another one, with the error of the latter."""
        later = action(self.approval)
        return replace(
            later,
            entries=self.entries + later.entries,
            wake=self.wake + later.wake,
            notifications=self.notifications + later.notifications,
        )


@dataclass(frozen=True)
class PendingEntry:
    """Part of an audit entry that is known before the result."""

    at: datetime
    actor: str | None
    action: ActionName
    reason: str = ""
    details: dict[str, str] | None = None
    signed_action: SignedAction | None = None

    def record(self, approval: Approval, result: str, **details: str) -> Change:
        """Return the approval with this entry added to its audit log."""
        entry = AuditEntry(
            seq=approval.entries + 1,
            at=self.at,
            actor=self.actor,
            action=self.action,
            reason=self.reason,
            result=result,
            details={**(self.details or {}), **details},
            signed_action=self.signed_action,
        )
        entry = chained(entry, approval.head or approval.approval_id)
        return Change(approval.model_copy(update={"entries": entry.seq, "head": entry.hash}), (entry,))


def open_approval(approval: Approval, request: ApprovalRequest, at: datetime) -> Change:
    """Open an approval, or join one with the same question, which may have ended.

    Early votes are counted now, in order, as far as the rules permit.
    """
    if approval.is_overdue(at):
        return end_stage(approval, at).then(partial(open_approval, request=request, at=at))
    rules = Rules.of(request)
    entry = PendingEntry(at, request.requester or None, "open", request.title, details=_request_details(request, rules))
    if approval.rules is not None:
        return _join(approval, approval.rules, request, rules, entry)
    opened = approval.model_copy(
        update={
            "rules": rules,
            "opened_at": at,
            "deadline": at + rules.stages[0].timeout,
            "waiters": {request.wait: request.awakeable},
            "votes": (),
        }
    )
    change = replace(entry.record(opened, "opened"), notifications=(PendingNotification("asked"),))
    for early in approval.votes:
        details = {} if early.signed else {"unsigned": "yes"}
        early_entry = PendingEntry(at, early.actor, early.action, early.reason, details)
        change = change.then(partial(_decide, vote=early, entry=early_entry))
    return replace(change, error=None)  # the opener did not cause the error of an early vote


def _request_details(request: ApprovalRequest, rules: Rules) -> dict[str, str]:
    details = {
        "requester": ("verified" if request.requester_verified else "unverified") if request.requester else "",
        "owner": request.requester_owner,
        "subject": request.subject,
    }
    return {"payload_digest": rules.payload_digest, **{name: value for name, value in details.items() if value}}


def _join(approval: Approval, rules: Rules, request: ApprovalRequest, new_rules: Rules, entry: PendingEntry) -> Change:
    if not rules.same_question(new_rules):
        error = Conflict(
            f"approval '{approval.approval_id}' exists with another requester, subject, approvers, quorum, veto, "
            "stages or payload; use another approval ID",
            metadata={"code": "another_question"},
        )
        return refuse(approval, entry, error)
    if approval.outcome is not None or request.wait in approval.waiters:
        return Change(approval)
    waiters = {**approval.waiters, request.wait: request.awakeable}
    return entry.record(approval.model_copy(update={"waiters": waiters}), "joined")


def decide(approval: Approval, vote: Vote, signed_action: SignedAction | None = None, *, by: str = "") -> Change:
    """Cast a vote. Repeating a vote changes nothing.

    After the deadline, the stage ends first.

    Args:
        approval: The approval.
        vote: The vote, without the delegator.
        signed_action: The signed action, for the audit log.
        by: ``link`` for a vote by link, for the audit log.

    Returns:
        The change. Its error is `Refused` 403 (``own_request``, ``not_an_approver``, ``delegation_revoked``,
        ``delegation_expired``), `Conflict` 409 (``contrary_decision``, ``vote_used``, ``too_late``, ``wrong_payload``)
        or `Refused` 429 (``too_many_early_decisions``).
    """
    details = {**({"by": by} if by else {}), **({} if vote.signed else {"unsigned": "yes"})}
    return _decide(approval, vote, PendingEntry(vote.at, vote.actor, vote.action, vote.reason, details, signed_action))


def _decide(approval: Approval, vote: Vote, entry: PendingEntry) -> Change:
    if approval.is_overdue(entry.at):
        return end_stage(approval, entry.at).then(partial(_decide, vote=vote, entry=entry))
    known = approval.vote_by(vote.actor)
    if known is not None and known.approve == vote.approve:
        return Change(approval)
    checked = contrary_vote(approval, vote, known) if known else check_vote(approval, vote, entry.at)
    if not isinstance(checked, Vote):
        return refuse(approval, entry, checked)
    if checked.on_behalf_of is not None:
        entry = replace(entry, details={**(entry.details or {}), "on_behalf_of": checked.on_behalf_of})
    voted = approval.model_copy(update={"votes": (*approval.votes, checked)})
    if voted.rules is None:
        return entry.record(voted, "early")
    decided = voted.rules.tally(voted.stage, voted.votes)
    return entry.record(voted, "counted") if decided is None else _close_by_vote(voted, entry, *decided)


def delegate(
    approval: Approval,
    delegation: Delegation,
    signed_action: SignedAction | None = None,
    *,
    max_duration: timedelta = MAX_DELEGATION,
) -> Change:
    """Delegate a person's vote until an expiry, at the latest until the end of the approval.

    A new delegation replaces the person's previous one. The first of delegator and delegate to vote uses the vote.

    Args:
        approval: The approval.
        delegation: The delegation.
        signed_action: The signed action, for the audit log.
        max_duration: Maximum duration of a delegation.

    Returns:
        The change. Its error is `NotFound`, `InvalidInput` (an expiry in the past or beyond the maximum), `Refused` 403
        (``own_request``, ``not_an_approver``, ``delegation_to_requester``), `Conflict` 409 (``vote_used``,
        ``delegate_may_decide``, ``too_late``) or `Refused` 429 (``too_many_delegations``).
    """
    if approval.rules is None:
        return Change(approval, error=not_opened(approval))
    if approval.is_overdue(delegation.at):
        return end_stage(approval, delegation.at).then(
            partial(delegate, delegation=delegation, signed_action=signed_action, max_duration=max_duration)
        )
    # Microseconds are needed to verify the signature.
    details = {"to": delegation.to, "until": delegation.until.astimezone(UTC).isoformat()}
    entry = PendingEntry(delegation.at, delegation.actor, "delegate", delegation.reason, details, signed_action)
    error = delegation_error(approval, approval.rules, delegation, max_duration)
    if error is not None:
        return refuse(approval, entry, error)
    if (final := approval.final_deadline()) is not None:
        delegation = delegation.model_copy(update={"until": min(delegation.until, final)})
    previous = approval.delegation_of(delegation.actor)
    if (
        previous is not None
        and previous.revoked_at is None
        and (previous.to, previous.until) == (delegation.to, delegation.until)
    ):
        return Change(approval)
    others = tuple(other for other in approval.delegations if other.actor != delegation.actor)
    change = entry.record(approval.model_copy(update={"delegations": (*others, delegation)}), "delegated")
    return replace(change, notifications=(PendingNotification("delegated", to=delegation.to),))


def revoke_delegation(approval: Approval, delegator: str, why: str, at: datetime) -> Change:
    """Mark a usable delegation as revoked because a right of its delegator or delegate was withdrawn.

    The mark is permanent, even if the right is granted again. A new delegation replaces it.
    """
    revoked = approval.delegation_of(delegator)
    if revoked is None or not approval.is_usable(revoked):
        return Change(approval)
    entry = PendingEntry(at, None, "revoke_delegation", why, details={"of": delegator, "to": revoked.to})
    delegations = tuple(
        other.model_copy(update={"revoked_at": at}) if other is revoked else other for other in approval.delegations
    )
    return entry.record(approval.model_copy(update={"delegations": delegations}), "revoked")


def end_stage(approval: Approval, at: datetime) -> Change:
    """End the current stage of an open approval: enter the next stage, or end the approval.

    The next stage gets its full duration from now.
    """
    if approval.rules is None or approval.stage_rules is None or approval.outcome is not None:
        return Change(approval)
    rules, stage = approval.rules, approval.stage_rules
    approvals = sum(vote.approve for vote in rules.counted_votes(approval.stage, approval.votes))
    deadline = "" if approval.deadline is None else f" at {format_time(approval.deadline)}"
    reason = f"timed out{deadline} with {approvals} of {stage.quorum} approvals"
    if stage.on_timeout is not OnTimeout.ESCALATE:
        result = _TIMEOUT_RESULTS[stage.on_timeout]
        if result is not ApprovalResult.TIMED_OUT:
            reason += f"; {result.value} by on_timeout"
        return _close(approval, PendingEntry(at, None, "expire", reason), result, [], reason)
    number = approval.stage + 1
    entered = approval.model_copy(
        update={"stage": number, "deadline": at + rules.stages[number].timeout, "reminders": 0}
    )
    entry = PendingEntry(at, None, "escalate", reason, details={"stage": str(number)})
    change = replace(entry.record(entered, "escalated"), notifications=(PendingNotification("escalated"),))
    decided = rules.tally(number, approval.votes)  # votes of the previous stages may reach the quorum
    if decided is None:
        return change
    end = PendingEntry(at, None, "escalate", "decided by votes of the previous stages")
    return change.then(lambda escalated: _close_by_vote(escalated, end, *decided))


def remind(approval: Approval, stage: int, number: int, at: datetime) -> Change:
    """Send a reminder if it is the next one of the current stage."""
    if approval.outcome is not None or approval.is_overdue(at):
        return Change(approval)
    if approval.rules is None or (approval.stage, approval.reminders + 1) != (stage, number):
        return Change(approval)
    recipients = ", ".join(sorted(approval.pending_approvers()))
    entry = PendingEntry(at, None, "remind", details={"number": str(number), "to": recipients})
    change = entry.record(approval.model_copy(update={"reminders": number}), "reminded")
    return replace(change, notifications=(PendingNotification("reminder", number=number),))


def withdraw(
    approval: Approval, actor: str, reason: str, at: datetime, signed_action: SignedAction | None = None
) -> Change:
    """Withdraw an approval for its requester, or for the owner of the requesting program's API key.

    Returns:
        The change. Its error is `NotFound`, `Refused` 403 (``not_the_requester``) or `Conflict` 409 (``too_late``).
    """
    if approval.rules is None:
        return Change(approval, error=not_opened(approval))
    if approval.is_overdue(at):
        return end_stage(approval, at).then(
            partial(withdraw, actor=actor, reason=reason, at=at, signed_action=signed_action)
        )
    entry = PendingEntry(at, actor, "withdraw", reason, signed_action=signed_action)
    if actor not in (approval.rules.requester, approval.rules.requester_owner):
        return refuse(approval, entry, Refused(f"{actor} is not the requester", 403, "not_the_requester"))
    if approval.outcome is not None:
        if approval.outcome.outcome is ApprovalResult.WITHDRAWN:
            return Change(approval)
        return refuse(approval, entry, too_late(approval, approval.outcome))
    return _close(approval, entry, ApprovalResult.WITHDRAWN, [actor], reason or f"withdrawn by {actor}")


def revoke_links(
    approval: Approval,
    actor: str,
    person: str | None,
    at: datetime,
    *,
    reason: str = "",
    signed_action: SignedAction | None = None,
    may_revoke: bool,
) -> Change:
    """Revoke the links that were issued up to now.

    Args:
        approval: The approval.
        actor: The revoking person.
        person: Owner of the links; None for all links.
        at: Time of the revocation.
        reason: Reason for the audit log.
        signed_action: The signed action, for the audit log.
        may_revoke: Whether the actor's role permits revoking links of others.

    Returns:
        The change. Its error is `NotFound`, `Refused` 403 (``not_allowed_to_revoke``), `Refused` 429
        (``too_many_revocations``) or `Conflict` 409 (``too_late``).
    """
    if approval.rules is None:
        return Change(approval, error=not_opened(approval))
    if approval.is_overdue(at):
        again = partial(
            revoke_links,
            actor=actor,
            person=person,
            reason=reason,
            at=at,
            signed_action=signed_action,
            may_revoke=may_revoke,
        )
        return end_stage(approval, at).then(again)
    details = {} if person is None else {"person": person}
    entry = PendingEntry(at, actor, "revoke_links", reason, details, signed_action)
    error = revocation_error(approval, approval.rules, actor, person, may_revoke=may_revoke)
    if error is not None:
        return refuse(approval, entry, error)
    # A revocation of all links covers the earlier ones of single people.
    revoked = {ANYONE: at} if person is None else {**approval.links_revoked, person: at}
    return entry.record(approval.model_copy(update={"links_revoked": revoked}), "revoked")


def leave(approval: Approval, request: Leave, at: datetime) -> Change:
    """End a wait; the last one withdraws the approval. An unknown wait changes nothing.

    Returns:
        The change. Its error is `NotFound` for an approval that was never opened.
    """
    if approval.rules is None:
        return Change(approval, error=not_opened(approval))
    if approval.is_overdue(at):
        return end_stage(approval, at).then(partial(leave, request=request, at=at))
    if approval.outcome is not None:
        return Change(approval)
    entry = PendingEntry(at, None, "leave", request.reason)
    if request.wait is not None:
        if request.wait not in approval.waiters:
            return Change(approval)
        remaining = {wait: awakeable for wait, awakeable in approval.waiters.items() if wait != request.wait}
        if remaining:
            return entry.record(approval.model_copy(update={"waiters": remaining}), "left")
    return _close(approval, entry, ApprovalResult.WITHDRAWN, [], request.reason or "withdrawn by the requester")


def listen(approval: Approval, request: Listen, at: datetime) -> Change:
    """Replace the awakeable of a wait, after any client completed the previous one.

    It adds no audit entry: otherwise a client that completes awakeables could grow the audit log without bound.

    Returns:
        The change. Its error is `NotFound` for an unknown wait. The outcome of another approval of the same ID must not
        be read.
    """
    if approval.is_overdue(at):
        return end_stage(approval, at).then(partial(listen, request=request, at=at))
    if request.wait in approval.waiters:
        return Change(approval.model_copy(update={"waiters": {**approval.waiters, request.wait: request.awakeable}}))
    if request.wait in approval.answered:
        return Change(approval)
    return Change(
        approval,
        error=NotFound(
            f"approval '{approval.approval_id}' has no such wait: the approval was deleted and its outcome is unknown; "
            "start again with another approval ID",
            metadata={"approval": approval.approval_id, "code": "unknown_wait"},
        ),
    )


def refuse(approval: Approval, entry: PendingEntry, error: PerdureTerminalError) -> Change:
    """Record and count a refused action."""
    counted = approval.model_copy(update={"refusals": approval.refusals + 1})
    if approval.refusals >= MAX_RECORDED_REFUSALS:
        return Change(counted, error=error)
    why = {"why": error.metadata["why"]} if error.metadata and "why" in error.metadata else {}
    return replace(entry.record(counted, f"refused:{error_code(error)}", **why), error=error)


def not_opened(approval: Approval) -> NotFound:
    """Return the error for an approval that was never opened."""
    early = f"; it has {len(approval.votes)} early vote(s)" if approval.votes else ""
    return NotFound(
        f"approval '{approval.approval_id}' has not been opened{early}", metadata={"approval": approval.approval_id}
    )


def _close_by_vote(approval: Approval, entry: PendingEntry, result: ApprovalResult, votes: list[Vote]) -> Change:
    if len(votes) == 1:
        reason = votes[0].reason
    else:
        reason = "; ".join(f"{vote.actor}: {vote.reason}" for vote in votes if vote.reason)
    return _close(approval, entry, result, [vote.actor for vote in votes], reason)


def _close(approval: Approval, entry: PendingEntry, result: ApprovalResult, by: list[str], reason: str) -> Change:
    outcome = ApprovalOutcome(approval_id=approval.approval_id, outcome=result, decided_by=by, reason=reason)
    update = {"outcome": outcome, "closed_at": entry.at, "waiters": {}, "answered": tuple(approval.waiters)}
    change = entry.record(approval.model_copy(update=update), result.value)
    return replace(change, wake=tuple(approval.waiters.values()))

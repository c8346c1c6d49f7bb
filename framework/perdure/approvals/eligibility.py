"""Eligibility: who may vote, delegate and revoke links. Pure functions that return the error or None."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from perdure.approvals.messages import ApprovalOutcome, ApprovalResult, Delegation, Vote
from perdure.approvals.schema import Approval, Rules
from perdure.errors import Conflict, InvalidInput, PerdureTerminalError, Refused
from perdure.security.user_names import ANYONE, shares_mailbox

MAX_EARLY_VOTES: Final = 100
"""Maximum number of votes before the opening. Any person can send these for any ID."""

MAX_DELEGATIONS: Final = 100
"""Maximum number of people that delegate their vote on one approval."""

MAX_REVOCATIONS: Final = 100
"""Maximum number of people whose links to one approval are revoked separately."""


def check_vote(approval: Approval, vote: Vote, at: datetime) -> Vote | PerdureTerminalError:
    """Return a vote with the approver whose right it uses, or the error."""
    assigned = _assign_approver(approval, vote, at)
    return (_vote_error(approval, assigned) or assigned) if isinstance(assigned, Vote) else assigned


def _assign_approver(approval: Approval, vote: Vote, at: datetime) -> Vote | PerdureTerminalError:
    rules, actor = approval.rules, vote.actor
    if rules is None:
        return vote
    if rules.excludes(actor):
        return Refused(f"{_exclusion(rules, actor)} and may not vote", 403, "own_request")
    error: PerdureTerminalError | None = None
    if rules.is_eligible(approval.stage, actor, vote.groups, approve=vote.approve):
        used = approval.vote_for(actor)
        if used is None:
            return vote
        error = _vote_used(approval, actor, used)
    for delegation in approval.delegations:
        delegator = delegation.actor
        if delegation.to != actor or not rules.is_eligible(
            approval.stage, delegator, delegation.groups, approve=vote.approve
        ):
            continue
        used = approval.vote_for(delegator)
        if used is not None:
            error = error or _vote_used(approval, delegator, used)
        elif delegation.revoked_at is not None:
            error = error or Refused(f"the delegation of {delegator} to {actor} is revoked", 403, "delegation_revoked")
        elif at >= delegation.until:
            error = error or Refused(
                f"the delegation of {delegator} to {actor} expired at {format_time(delegation.until)}",
                403,
                "delegation_expired",
            )
        else:
            return vote.model_copy(update={"on_behalf_of": delegator, "groups": delegation.groups})
    stage = f" of stage {approval.stage}" if approval.stage else ""
    return error or Refused(f"{actor} is not among the approvers{stage}", 403, "not_an_approver")


def _exclusion(rules: Rules, person: str) -> str:
    if shares_mailbox(person, [rules.requester]):
        return f"{person} requested this approval"
    if shares_mailbox(person, [rules.requester_owner]):
        return f"{person} owns the API key of {rules.requester}, which requested this approval,"
    return f"{person} is the subject of this approval"


def _vote_used(approval: Approval, approver: str, used: Vote) -> Conflict:
    delegator = f" on behalf of {used.on_behalf_of}" if used.on_behalf_of else ""
    return Conflict(
        f"{used.actor} voted '{used.action}'{delegator} on '{approval.approval_id}' at {format_time(used.at)}; "
        f"the vote of {approver} is used",
        metadata={
            "code": "vote_used",
            "decided": used.action,
            "decided_by": used.actor,
            "decided_at": format_time(used.at),
        },
    )


def contrary_vote(approval: Approval, vote: Vote, known: Vote) -> Conflict:
    """Return the error for a second, different vote of a person."""
    return Conflict(
        f"{vote.actor} voted '{known.action}' on approval '{approval.approval_id}' at {format_time(known.at)}; "
        "a vote cannot be changed",
        metadata={"code": "contrary_decision", "decided": known.action, "decided_at": known.at.isoformat()},
    )


def _vote_error(approval: Approval, vote: Vote) -> PerdureTerminalError | None:
    if approval.outcome is not None:
        return too_late(approval, approval.outcome)
    if approval.rules is None and len(approval.votes) >= MAX_EARLY_VOTES:
        return Refused(
            f"approval '{approval.approval_id}' is not open yet and already has {MAX_EARLY_VOTES} votes",
            429,
            "too_many_early_decisions",
        )
    if approval.rules is not None and vote.payload_digest not in (None, approval.rules.payload_digest):
        return Conflict(
            f"the payload of approval '{approval.approval_id}' differs from the one that {vote.actor} signed",
            metadata={"code": "wrong_payload"},
        )
    return None


def delegation_error(
    approval: Approval, rules: Rules, delegation: Delegation, max_duration: timedelta
) -> PerdureTerminalError | None:
    """Return the error of a delegation; None when it is allowed."""
    actor, to = delegation.actor, delegation.to
    if rules.excludes(actor):
        return Refused(f"{_exclusion(rules, actor)} and has no vote to delegate", 403, "own_request")
    if rules.excludes(to):
        return Refused(f"{_exclusion(rules, to)} and may not be a delegate", 403, "delegation_to_requester")
    if not rules.is_eligible(approval.stage, actor, delegation.groups, approve=False):
        return Refused(
            f"{actor} is not among the approvers; a delegated vote cannot be delegated", 403, "not_an_approver"
        )
    if approval.outcome is not None:
        return too_late(approval, approval.outcome)
    return _delegation_limit(approval, rules, delegation, max_duration)


def _delegation_limit(
    approval: Approval, rules: Rules, delegation: Delegation, max_duration: timedelta
) -> PerdureTerminalError | None:
    actor, to = delegation.actor, delegation.to
    if delegation.until > delegation.at + max_duration:
        return InvalidInput(
            f"until: a delegation lasts at most {max_duration.total_seconds() / 86_400:g} days, that is until "
            f"{format_time(delegation.at + max_duration)}; got {format_time(delegation.until)}",
            metadata={"field": "until"},
        )
    if (used := approval.vote_for(actor)) is not None:
        return _vote_used(approval, actor, used)
    if rules.is_eligible(approval.stage, to, [], approve=True) or approval.vote_by(to) is not None:
        return Conflict(
            f"{to} is an approver or has voted; a person has one vote", metadata={"code": "delegate_may_decide"}
        )
    if delegation.until <= delegation.at:
        return InvalidInput(f"until: {format_time(delegation.until)} is in the past", metadata={"field": "until"})
    if approval.delegation_of(actor) is None and len(approval.delegations) >= MAX_DELEGATIONS:
        return Refused(f"the limit of {MAX_DELEGATIONS} delegations is reached", 429, "too_many_delegations")
    return None


def too_late(approval: Approval, outcome: ApprovalOutcome) -> Conflict:
    """Return the error for an action after the end."""
    event = "timed out" if outcome.outcome is ApprovalResult.TIMED_OUT else f"was {outcome.outcome}"
    voters = f" by {', '.join(outcome.decided_by)}" if outcome.decided_by else ""
    closed_at = "" if approval.closed_at is None else format_time(approval.closed_at)
    return Conflict(
        f"approval '{approval.approval_id}' {event}{voters} at {closed_at} and is closed",
        metadata={
            "code": "too_late",
            "outcome": outcome.outcome.value,
            "decided_by": ", ".join(outcome.decided_by),
            "decided_at": closed_at,
        },
    )


def revocation_error(
    approval: Approval, rules: Rules, actor: str, person: str | None, *, may_revoke: bool
) -> PerdureTerminalError | None:
    """Return the error of a revocation of links; None when it is allowed."""
    if not (may_revoke or actor in (rules.requester, person)):
        return Refused(
            f"{actor} may not revoke the links of others: only the requester, operators and administrators may",
            403,
            "not_allowed_to_revoke",
        )
    if approval.outcome is not None:
        return too_late(approval, approval.outcome)
    if person is not None and person not in approval.links_revoked and len(approval.links_revoked) >= MAX_REVOCATIONS:
        return Refused(
            f"the links of {MAX_REVOCATIONS} people are revoked: revoke all links, without a person",
            429,
            "too_many_revocations",
        )
    return None


def link_error(approval: Approval, person: str, issued_at: datetime) -> PerdureTerminalError | None:
    """Return the error of a revoked link; None for a valid one."""
    if approval.opened_at is not None and issued_at < approval.opened_at:
        return Refused(
            "this link was issued for an earlier approval of the same ID: request a new one",
            403,
            "link_revoked",
            metadata={"why": "earlier_approval"},
        )
    revoked = [at for name, at in approval.links_revoked.items() if name in (person, ANYONE)]
    if revoked and issued_at <= max(revoked):
        return Refused(
            f"this link was revoked at {format_time(max(revoked))}: request a new one",
            403,
            "link_revoked",
            metadata={"why": "revoked"},
        )
    return None


def format_time(at: datetime) -> str:
    """Return a time for messages."""
    return at.isoformat(timespec="seconds")

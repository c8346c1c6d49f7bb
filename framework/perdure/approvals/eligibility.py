"""Why somebody may not decide or delegate, and in whose right they may: pure functions, no engine."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from perdure.approvals.approval import Approval, deciders
from perdure.approvals.messages import ApprovalOutcome, ApprovalResult, Decision, Delegation
from perdure.approvals.rules import Rules
from perdure.errors import Conflict, InvalidInput, PerdureTerminalError, Refused
from perdure.security.user_names import ANYONE, shares_mailbox

MAX_EARLY_DECISIONS: Final = 100
"""How many people can decide before an approval is opened; anyone can send these, for any id."""

MAX_DELEGATIONS: Final = 100
"""How many people can delegate on one approval."""

MAX_REVOCATIONS: Final = 100
"""How many people's links can be revoked one by one on one approval."""


def admitted(approval: Approval, decision: Decision, at: datetime) -> Decision | PerdureTerminalError:
    """Return a decision as it counts, or why it doesn't."""
    seated = _seated(approval, decision, at)
    return (_objection(approval, seated) or seated) if isinstance(seated, Decision) else seated


def _seated(approval: Approval, decision: Decision, at: datetime) -> Decision | PerdureTerminalError:
    """Return a decision with whose right to decide it uses, or why there is none."""
    rules, actor = approval.rules, decision.actor
    if rules is None:
        return decision
    if rules.excludes(actor):
        return Refused(f"{_own(rules, actor)} and may not decide it", 403, "own_request")
    obstacle: PerdureTerminalError | None = None
    if rules.entitled(approval.stage, actor, decision.groups, approve=decision.approve):
        used = approval.decision_at(actor)
        if used is None:
            return decision
        obstacle = _seat_taken(approval, actor, used)
    for delegation in approval.delegations:
        if delegation.to != actor or not rules.entitled(
            approval.stage, delegation.actor, delegation.groups, approve=decision.approve
        ):
            continue
        used = approval.decision_at(delegation.actor)
        if used is not None:
            obstacle = obstacle or _seat_taken(approval, delegation.actor, used)
        elif delegation.revoked_at is not None:
            obstacle = obstacle or Refused(
                f"{actor} could decide in the place of {delegation.actor}, but that delegation is revoked",
                403,
                "delegation_revoked",
            )
        elif at >= delegation.until:
            obstacle = obstacle or Refused(
                f"{actor} could decide in the place of {delegation.actor} until {moment(delegation.until)} only",
                403,
                "delegation_over",
            )
        else:
            return decision.model_copy(update={"on_behalf_of": delegation.actor, "groups": delegation.groups})
    later = f" any more, since it was escalated (stage {approval.stage})" if approval.stage else ""
    return obstacle or Refused(f"{actor} is not among the approvers{later}", 403, "not_an_approver")


def _own(rules: Rules, person: str) -> str:
    """Say in which way an approval is a person's own."""
    if shares_mailbox(person, [rules.requester]):
        return f"{person} asked for this approval"
    if shares_mailbox(person, [rules.requester_owner]):
        return f"{person} answers for {rules.requester}, which asked for this approval,"
    return f"{person} is the subject of this approval"


def _seat_taken(approval: Approval, seat: str, used: Decision) -> Conflict:
    return Conflict(
        f"{deciders([used])} decided '{used.act}' on approval '{approval.approval_id}' at {moment(used.at)}, "
        f"so the vote of {seat} is used",
        metadata={"code": "seat_taken", "decided": used.act, "decided_by": used.actor, "decided_at": moment(used.at)},
    )


def contrary(approval: Approval, decision: Decision, known: Decision) -> Conflict:
    """Return the error for who decides otherwise than they did before."""
    return Conflict(
        f"{decision.actor} decided '{known.act}' on approval '{approval.approval_id}' at {moment(known.at)}, "
        "and each person decides once",
        metadata={"code": "contrary_decision", "decided": known.act, "decided_at": known.at.isoformat()},
    )


def _objection(approval: Approval, decision: Decision) -> PerdureTerminalError | None:
    if approval.outcome is not None:
        return too_late(approval, approval.outcome)
    if approval.rules is None and len(approval.decisions) >= MAX_EARLY_DECISIONS:
        return Refused(
            f"approval '{approval.approval_id}' has not been opened, and {MAX_EARLY_DECISIONS} decisions wait for it",
            429,
            "too_many_early_decisions",
        )
    if approval.rules is not None and decision.payload_digest not in (None, approval.rules.payload_digest):
        return Conflict(
            f"approval '{approval.approval_id}' is about something else than {decision.actor} was shown",
            metadata={"code": "wrong_payload"},
        )
    return None


def objection_to_delegating(
    approval: Approval, rules: Rules, delegation: Delegation, longest: timedelta
) -> PerdureTerminalError | None:
    """Return why a person may not delegate so; None when they may.

    Args:
        approval: The approval.
        rules: Its rules.
        delegation: The delegation.
        longest: How long a delegation may last.
    """
    actor, to = delegation.actor, delegation.to
    if rules.excludes(actor):
        return Refused(f"{_own(rules, actor)} and has nothing to delegate", 403, "own_request")
    if rules.excludes(to):
        return Refused(f"{_own(rules, to)} and may not decide it for anybody", 403, "delegation_to_requester")
    if not rules.entitled(approval.stage, actor, delegation.groups, approve=False):
        return Refused(
            f"{actor} is not among the approvers, and what was delegated can't be passed on", 403, "not_an_approver"
        )
    if approval.outcome is not None:
        return too_late(approval, approval.outcome)
    return _obstacle_to_delegating(approval, rules, delegation, longest)


def _obstacle_to_delegating(
    approval: Approval, rules: Rules, delegation: Delegation, longest: timedelta
) -> PerdureTerminalError | None:
    actor, to = delegation.actor, delegation.to
    if delegation.until > delegation.at + longest:
        return InvalidInput(
            f"until: a delegation lasts at most {longest.total_seconds() / 86_400:g} days, so until "
            f"{moment(delegation.at + longest)}; got {moment(delegation.until)}",
            metadata={"field": "until"},
        )
    if (used := approval.decision_at(actor)) is not None:
        return _seat_taken(approval, actor, used)
    if rules.entitled(approval.stage, to, [], approve=True) or approval.decision_of(to) is not None:
        return Conflict(
            f"{to} may decide in their own right or has decided, and nobody has two votes",
            metadata={"code": "delegate_may_decide"},
        )
    if delegation.until <= delegation.at:
        return InvalidInput(f"until: {moment(delegation.until)} is over already", metadata={"field": "until"})
    if approval.delegation_of(actor) is None and len(approval.delegations) >= MAX_DELEGATIONS:
        return Refused(f"{MAX_DELEGATIONS} people have delegated already", 429, "too_many_delegations")
    return None


def too_late(approval: Approval, outcome: ApprovalOutcome) -> Conflict:
    """Return the error for who comes after the end: what was decided, by whom and when."""
    what = "timed out" if outcome.outcome is ApprovalResult.TIMED_OUT else f"was {outcome.outcome}"
    who = f" by {', '.join(outcome.decided_by)}" if outcome.decided_by else ""
    when = "" if approval.closed_at is None else moment(approval.closed_at)
    return Conflict(
        f"approval '{approval.approval_id}' {what}{who} at {when}; it can't be decided any more",
        metadata={
            "code": "too_late",
            "outcome": outcome.outcome.value,
            "decided_by": ", ".join(outcome.decided_by),
            "decided_at": when,
        },
    )


def moment(at: datetime) -> str:
    """Return a moment as people are told it."""
    return at.isoformat(timespec="seconds")


def objection_to_revoking(
    approval: Approval, rules: Rules, actor: str, person: str | None, *, may_revoke: bool
) -> PerdureTerminalError | None:
    """Return why a person may not revoke links to an approval; None when they may.

    Args:
        approval: The approval.
        rules: Its rules.
        actor: Who wants it.
        person: The person whose links are meant; None for everybody's.
        may_revoke: Whether the actor's role allows to revoke links of others.
    """
    if not (may_revoke or actor in (rules.requester, person)):
        return Refused(
            f"{actor} may not revoke links of others: that takes the requester or the role operator or administrator",
            403,
            "not_allowed_to_revoke",
        )
    if approval.outcome is not None:
        return too_late(approval, approval.outcome)
    if person is not None and person not in approval.links_revoked and len(approval.links_revoked) >= MAX_REVOCATIONS:
        return Refused(
            f"the links of {MAX_REVOCATIONS} people are revoked already: revoke everybody's, without a person",
            429,
            "too_many_revocations",
        )
    return None


def objection_to_link(approval: Approval, person: str, issued_at: datetime) -> PerdureTerminalError | None:
    """Return why a link no longer decides an approval; None when it does.

    Args:
        approval: The approval.
        person: The person whose link it is.
        issued_at: When it was issued.
    """
    if approval.opened_at is not None and issued_at < approval.opened_at:
        return Refused(
            "this link was issued for an earlier approval of the same id: ask for a new one",
            403,
            "link_revoked",
            metadata={"why": "earlier_approval"},
        )
    revoked = [at for name, at in approval.links_revoked.items() if name in (person, ANYONE)]
    if revoked and issued_at <= max(revoked):
        return Refused(
            f"this link was revoked at {moment(max(revoked))}: ask for a new one",
            403,
            "link_revoked",
            metadata={"why": "revoked"},
        )
    return None

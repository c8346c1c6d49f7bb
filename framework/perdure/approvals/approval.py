"""An approval as far as it has come, and what one act does to it: pure data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from pydantic import AwareDatetime, BaseModel, ConfigDict

from perdure.approvals.audit_log import chained
from perdure.approvals.messages import (
    ActionName,
    ApprovalOutcome,
    ApprovalState,
    AuditEntry,
    Decision,
    Delegation,
)
from perdure.approvals.rules import Rules, StageRules
from perdure.errors import PerdureTerminalError
from perdure.security.signed_actions import SignedAction

NewsKind: TypeAlias = Literal["asked", "reminder", "escalated", "delegated"]
"""Why somebody is told of an approval."""


class Approval(BaseModel):
    """An approval as far as it has come.

    Args:
        approval_id: Its id.
        rules: Who may decide; None until it is opened.
        opened_at: When it was opened.
        stage: Which stage is under way, or was at the end.
        deadline: Until when it can be decided in this stage.
        reminders: How many reminders were sent in this stage.
        closed_at: When it ended.
        decisions: What was decided, one for each person; until it is opened, not yet checked against the rules.
        delegations: Who may decide in whose place; the latest of each person.
        waiters: Those who wait for the outcome: the id of each wait, and the awakeable that wakes it.
        answered: Ids of the waits that were open when it ended, and so may read its outcome.
        outcome: How it ended; None until then, and never changed again.
        entries: How long the audit log is.
        head: Hash of the audit log's last entry.
        refusals: How many acts were refused.
        links_revoked: Until when links were issued that decide no longer, by person, and under `ANYONE` for all.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    approval_id: str
    rules: Rules | None = None
    opened_at: AwareDatetime | None = None
    stage: int = 0
    deadline: AwareDatetime | None = None
    reminders: int = 0
    closed_at: AwareDatetime | None = None
    decisions: tuple[Decision, ...] = ()
    delegations: tuple[Delegation, ...] = ()
    waiters: dict[str, str] = {}
    answered: tuple[str, ...] = ()
    outcome: ApprovalOutcome | None = None
    entries: int = 0
    head: str = ""
    refusals: int = 0
    links_revoked: dict[str, AwareDatetime] = {}

    @property
    def state(self) -> ApprovalState:
        """How it stands."""
        if self.outcome is not None:
            return self.outcome.outcome
        return "expected" if self.rules is None else "open"

    @property
    def stage_rules(self) -> StageRules | None:
        """The rules of this stage; None until it is opened."""
        return None if self.rules is None else self.rules.stages[self.stage]

    def decision_of(self, person: str) -> Decision | None:
        """Return what someone decided, if anything."""
        return next((decision for decision in self.decisions if decision.actor == person), None)

    def decision_at(self, seat: str) -> Decision | None:
        """Return what was decided by someone or in their place, if anything."""
        return next((decision for decision in self.decisions if decision.seat == seat), None)

    def delegation_of(self, person: str) -> Delegation | None:
        """Return to whom someone delegated, if to anybody."""
        return next((delegation for delegation in self.delegations if delegation.actor == person), None)

    def last_deadline(self) -> datetime | None:
        """Return when it ends at the latest, if each stage takes all of its time; None until it is opened."""
        if self.rules is None or self.deadline is None:
            return None
        later = self.rules.stages[self.stage + 1 :]
        return self.deadline + sum((stage.timeout for stage in later), timedelta(0))

    def overdue(self, at: datetime) -> bool:
        """Tell if this stage is open still, though its time is over."""
        return self.outcome is None and self.deadline is not None and at >= self.deadline

    def grants(self, delegation: Delegation) -> bool:
        """Tell if a delegation could be used in this stage, its end aside: who delegated may decide, and has not."""
        if self.rules is None or self.outcome is not None or self.decision_at(delegation.actor) is not None:
            return False
        if delegation.revoked_at is not None:
            return False
        return self.rules.entitled(
            self.stage, delegation.actor, delegation.groups, approve=False
        )  # who may approve may reject


@dataclass(frozen=True)
class News:
    """Something that people are to be told.

    Args:
        kind: Why.
        to: Whom; whoever the approval waits for when left out.
        number: Which reminder it is.
    """

    kind: NewsKind
    to: str | None = None
    number: int = 0


@dataclass(frozen=True)
class Change:
    """What one act does to an approval.

    Args:
        approval: The approval afterwards.
        entries: What to add to the audit log.
        wake: Awakeables of those who wait for the outcome, which is there now.
        news: What people are to be told.
        error: What to raise, once the rest is recorded; None when the act was accepted.
    """

    approval: Approval
    entries: tuple[AuditEntry, ...] = ()
    wake: tuple[str, ...] = ()
    news: tuple[News, ...] = ()
    error: PerdureTerminalError | None = None

    def then(self, act: Callable[[Approval], Change]) -> Change:
        """Return this change followed by another; the error is the later one's."""
        later = act(self.approval)
        return replace(
            later,
            entries=self.entries + later.entries,
            wake=self.wake + later.wake,
            news=self.news + later.news,
        )


@dataclass(frozen=True)
class Attempt:
    """Who does what, when, and why: the part of an audit log's entry that is known before the result.

    Args:
        at: When.
        actor: Who; None for nobody.
        act: What.
        reason: Why.
        details: More facts.
        proof: The act as the actor signed it.
    """

    at: datetime
    actor: str | None
    act: ActionName
    reason: str = ""
    details: dict[str, str] | None = None
    proof: SignedAction | None = None

    def recorded(self, approval: Approval, result: str, **details: str) -> Change:
        """Return an approval with one more entry in its audit log.

        Args:
            approval: The approval.
            result: What came of the act.
            details: Facts that the result adds.
        """
        entry = AuditEntry(
            seq=approval.entries + 1,
            at=self.at,
            actor=self.actor,
            act=self.act,
            reason=self.reason,
            result=result,
            details={**(self.details or {}), **details},
            proof=self.proof,
        )
        entry = chained(entry, approval.head or approval.approval_id)
        return Change(approval.model_copy(update={"entries": entry.seq, "head": entry.hash}), (entry,))


def waits_for(approval: Approval) -> frozenset[str]:
    """Return whose decision an approval waits for, and so in whose inboxes it is.

    Args:
        approval: The approval.

    Returns:
        People, groups as ``group:finance``, or `perdure.security.user_names.ANYONE`; nobody unless it is open.
        Delegations count whether or not their time is over: that ends by itself.
    """
    if approval.rules is None or approval.outcome is not None:
        return frozenset()
    decided = {decision.actor for decision in approval.decisions}
    done = decided | {decision.seat for decision in approval.decisions}
    delegates = {delegation.to for delegation in approval.delegations if approval.grants(delegation)}
    return (approval.rules.addressed(approval.stage) - done) | (delegates - decided)


def deciders(decisions: Iterable[Decision]) -> str:
    """Return who decided, for people: names, and in whose place."""
    return ", ".join(
        decision.actor if decision.on_behalf_of is None else f"{decision.actor} in the place of {decision.on_behalf_of}"
        for decision in decisions
    )

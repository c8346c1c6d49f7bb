"""Who may decide one approval, and what decisions come to: pure data and pure functions, no engine.

A person has one decision, and a decision uses one seat: the person's own, or that of somebody who delegated theirs.
So a quorum of two is two people, whatever was delegated to whom.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from pydantic import BaseModel, ConfigDict, JsonValue

from perdure._runtime.serdes import compact_json, serde_for
from perdure.approvals.messages import ApprovalResult, Decision
from perdure.approvals.request import ApprovalRequest, OnTimeout, people_of
from perdure.security.user_names import ANYONE, group_of, is_group, shares_mailbox


class StageRules(BaseModel):
    """Who may decide in one stage, and how many must agree.

    Args:
        approvers: People and groups; anyone when empty, but never requester and subject.
        quorum: How many approvals are needed.
        timeout: How long the stage lasts.
        remind_every: Interval of reminders; None for none.
        on_timeout: What the stage's end means.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    approvers: tuple[str, ...]
    quorum: int
    timeout: timedelta
    remind_every: timedelta | None = None
    on_timeout: OnTimeout = OnTimeout.ERROR


class Rules(BaseModel):
    """Who may decide one approval, and how many must agree.

    Args:
        requester: The one who asked; empty when it was nobody in particular.
        requester_verified: Whether the requester was authenticated.
        requester_owner: The person who made the requesting program's API key.
        subject: The person whom the business is about.
        stages: The stages, at least one.
        groups: Members of groups, as far as the request names them.
        veto: Whose single rejection ends it.
        payload_digest: What was asked, see `payload_digest`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    requester: str
    requester_verified: bool = False
    requester_owner: str = ""
    subject: str = ""
    stages: tuple[StageRules, ...]
    groups: Mapping[str, tuple[str, ...]] = {}
    veto: tuple[str, ...] = ()
    payload_digest: str

    @classmethod
    def of(cls, request: ApprovalRequest) -> Rules:
        """Return the rules of a request."""
        stages = tuple(
            StageRules(
                approvers=tuple(sorted(stage.approvers)),
                quorum=stage.quorum,
                timeout=stage.timeout,
                remind_every=stage.remind_every,
                on_timeout=stage.on_timeout or OnTimeout.ERROR,
            )
            for stage in request.stages
        )
        return cls(
            requester=request.requester,
            requester_verified=request.requester_verified,
            requester_owner=request.requester_owner,
            subject=request.subject,
            stages=stages,
            groups={group: tuple(sorted(members)) for group, members in request.groups.items()},
            veto=tuple(sorted(request.veto)),
            payload_digest=payload_digest(request.payload),
        )

    def asks_the_same(self, other: Rules) -> bool:
        """Tell if two ask the same question of the same people; how long they have may differ."""

        def question(rules: Rules) -> tuple[object, ...]:
            stages = [(stage.approvers, stage.quorum, stage.on_timeout) for stage in rules.stages]
            asker = (rules.requester, rules.requester_verified, rules.requester_owner, rules.subject)
            return asker, stages, dict(rules.groups), rules.veto, rules.payload_digest

        return question(self) == question(other)

    @property
    def excluded(self) -> tuple[str, ...]:
        """People excluded from deciding: the requester, the owner of its API key, and the subject."""
        return tuple(filter(None, (self.requester, self.requester_owner, self.subject)))

    def excludes(self, person: str) -> bool:
        """Tell if a person may not decide because it is their own request or business, also under an alias.

        Args:
            person: The person.
        """
        return shares_mailbox(person, self.excluded)

    def entitled(self, stage: int, person: str, groups: Iterable[str], *, approve: bool) -> bool:
        """Tell if someone may decide so in their own right.

        Args:
            stage: The stage.
            person: Who.
            groups: What they have proved to belong to.
            approve: How they want to decide; who only has a veto may only reject.
        """
        if self.excludes(person):
            return False
        approvers = self.stages[stage].approvers
        if not approvers or self._named(approvers, person, groups):
            return True
        return not approve and self._named(self.veto, person, groups)

    def may_veto(self, decision: Decision) -> bool:
        """Tell if a rejection by this person ends the approval."""
        return ANYONE in self.veto or self._named(self.veto, decision.seat, decision.groups)

    def _named(self, names: Iterable[str], person: str, groups: Iterable[str]) -> bool:
        for name in names:
            if name == person:
                return True
            if is_group(name):
                group = group_of(name)
                if person in self.groups[group] if group in self.groups else group in groups:
                    return True
        return False

    def counted(self, stage: int, decisions: Iterable[Decision]) -> list[Decision]:
        """Return those decisions that count in a stage: by people who may decide so there."""
        return [
            decision
            for decision in decisions
            if self.entitled(stage, decision.seat, decision.groups, approve=decision.approve)
        ]

    def able(self, stage: int) -> frozenset[str] | None:
        """Return everybody who may approve in a stage; None when nobody can tell who they are."""
        return people_of(self.stages[stage].approvers, self.groups, self.excluded)

    def deciding(self, stage: int, decisions: Sequence[Decision]) -> tuple[ApprovalResult, list[Decision]] | None:
        """Return what decisions of different people come to, and which of them made it so; None while more are needed.

        When it is known who may decide, it is rejected once those who are left can't reach the quorum. When it isn't,
        nobody knows how many are left: then as many rejections reject as approvals approve. A veto rejects at once.

        Args:
            stage: The stage.
            decisions: The decisions, one for each person.
        """
        counted = self.counted(stage, decisions)
        approvals = [decision for decision in counted if decision.approve]
        rejections = [decision for decision in counted if not decision.approve]
        vetoes = [decision for decision in rejections if self.may_veto(decision)]
        if vetoes:
            return ApprovalResult.REJECTED, vetoes
        quorum, able = self.stages[stage].quorum, self.able(stage)
        if len(approvals) >= quorum:
            return ApprovalResult.APPROVED, approvals
        enough_to_reject = quorum if able is None else len(able) - quorum + 1
        return (ApprovalResult.REJECTED, rejections) if len(rejections) >= enough_to_reject else None

    def addressed(self, stage: int) -> frozenset[str]:
        """Return whose decision a stage waits for at first: people, groups without known members, or `ANYONE`."""
        approvers = self.stages[stage].approvers
        if not approvers:
            return frozenset({ANYONE})
        names: set[str] = set()
        for name in (*approvers, *self.veto):
            if is_group(name) and group_of(name) in self.groups:
                names.update(self.groups[group_of(name)])
            elif name != ANYONE:
                names.add(name)
        return frozenset(name for name in names if not self.excludes(name))


def payload_digest(payload: JsonValue) -> str:
    """Return the SHA-256 of a payload's canonical JSON, in hexadecimal: the order of keys does not matter."""
    return hashlib.sha256(compact_json(serde_for(object).serialize(payload)).encode()).hexdigest()

"""State keys, SQL and stored records of the approval services. Pure: no engine.

State of `Approvals`, keyed by approval ID:

    approval                the `Approval`
    request                 the `ApprovalRequest`
    audit_log/000001        one `AuditEntry` each
    nonces                  used nonces of signed actions and links; stored until the last one expires
    waiter/{inv}/{wait}     awakeable of a wait; the key holds the waiting invocation and the ID of the wait
    open                    marks an approval with work left: written first, cleared last

State of `ApprovalInbox`, keyed by person or group: one ``open/{deadline}/{approval_id}`` for each `InboxItem`.
State of `Principals`, keyed by person: ``principal`` and ``nonces``.

SQL reads the keys of waiters, marks and inbox items, because values may be encrypted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from perdure._runtime.records import StoredRecord
from perdure._runtime.time_scale import scaled
from perdure.approvals.messages import (
    ApprovalOutcome,
    ApprovalResult,
    ApprovalState,
    Delegation,
    PrincipalStatement,
    Vote,
)
from perdure.approvals.request import ApprovalRequest, OnTimeout, Requester, eligible_people
from perdure.errors import Refused
from perdure.security.credentials import Role
from perdure.security.encodings import json_digest
from perdure.security.user_names import ANYONE, group_of, is_group

APPROVALS: Final = "Approvals"
INBOX: Final = "ApprovalInbox"
PRINCIPALS: Final = "Principals"
DISPATCHER: Final = "ApprovalDispatcher"
RECONCILER: Final = "ApprovalReconciler"

APPROVAL_KEY: Final = "approval"
REQUEST_KEY: Final = "request"
NONCES_KEY: Final = "nonces"
OPEN_KEY: Final = "open"
PRINCIPAL_KEY: Final = "principal"
INBOX_PREFIX: Final = "open/"
_WAITER_PREFIX: Final = "waiter/"

SELECT_OPEN_APPROVALS: Final = f"""
    select a.service_name, a.service_key, a.key, encode(a.value, 'hex') as value from state o join state a
    on a.service_name = o.service_name and a.service_key = o.service_key
    where o.service_name = '{APPROVALS}' and o.key = '{OPEN_KEY}' and a.key = '{APPROVAL_KEY}'"""


def select_ended_waiters(grace: timedelta) -> str:
    """Return the SQL for waits of ended invocations: ``id``, ``entry`` (the state key), ``missing`` (no such row).

    After the engine's start, an invocation of a partition that still replays its log is missing, too.
    """
    return f"""
      select s.service_key as id, s.key as entry, i.id is null as missing from state s
      left join sys_invocation_status i on i.id = split_part(s.key, '/', 2)
      where s.service_name = '{APPROVALS}' and s.key like '{_WAITER_PREFIX}inv_%'
      and (i.id is null or (i.status = 'completed' and i.modified_at < {_ago(grace)}))"""


def select_missing_timers(grace: timedelta) -> str:
    """Return the SQL for open approvals without a scheduled end of their stage."""
    return f"""
      select s.service_key as id from state s where s.service_name = '{APPROVALS}' and s.key = '{OPEN_KEY}'
      and not exists (select 1 from sys_invocation_status i where i.target_service_name = '{APPROVALS}'
        and i.target_service_key = s.service_key
        and ((i.target_handler_name = 'end_stage' and i.status != 'completed') or i.modified_at >= {_ago(grace)}))"""


def select_paused_invocations(grace: timedelta) -> str:
    """Return the SQL for paused invocations of the approval services."""
    services = ", ".join(f"'{name}'" for name in (APPROVALS, INBOX, PRINCIPALS, DISPATCHER, RECONCILER))
    return f"""
      select i.id as id from sys_invocation_status i where i.status = 'paused' and i.modified_at < {_ago(grace)}
      and i.target_service_name in ({services})"""


def _ago(grace: timedelta) -> str:
    return f"now() - interval '{int(grace.total_seconds() * 1000)} milliseconds'"


def audit_log_key(seq: int) -> str:
    """Return the state key of an audit entry."""
    return f"audit_log/{seq:06d}"


def waiter_key(invocation_id: str, wait: str) -> str:
    """Return the state key of a wait."""
    return f"{_WAITER_PREFIX}{invocation_id}/{wait}"


def wait_of(key: str) -> str | None:
    """Return the ID of the wait in a state key; None for another key."""
    return key.rpartition("/")[2] if key.startswith(_WAITER_PREFIX) else None


def waiting_invocation(key: str) -> str:
    """Return the ID of the waiting invocation in the state key of a wait."""
    return key.split("/")[1]


def inbox_position(deadline: datetime) -> str:
    """Return a deadline as the first part of an inbox position; positions sort by deadline."""
    return deadline.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%f")


def inbox_cursor(approval_id: str, deadline: datetime) -> str:
    """Return the position of an inbox item, which is its state key without the prefix."""
    return f"{inbox_position(deadline)}/{approval_id}"


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StageRules(_Stored):
    """Voting rules of one stage; see `perdure.approvals.request.Stage`."""

    approvers: tuple[str, ...]
    quorum: int
    timeout: timedelta
    remind_every: timedelta | None = None
    on_timeout: OnTimeout = OnTimeout.ERROR


class Rules(_Stored, Requester):
    """Voting rules of an approval; see `perdure.approvals.request.ApprovalRequest`.

    A person casts one vote, as an approver or for one who delegated. A quorum of two is two people.
    """

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
                timeout=scaled(stage.timeout),
                remind_every=None if stage.remind_every is None else scaled(stage.remind_every),
                on_timeout=stage.on_timeout or OnTimeout.ERROR,
            )
            for stage in request.stages
        )
        return cls(
            **request.requester_fields,
            stages=stages,
            groups={group: tuple(sorted(members)) for group, members in request.groups.items()},
            veto=tuple(sorted(request.veto)),
            payload_digest=json_digest(request.payload),
        )

    def same_question(self, other: Rules) -> bool:
        """Return whether two requests ask the same people the same; their timeouts may differ."""

        def question(rules: Rules) -> tuple[object, ...]:
            stages = [(stage.approvers, stage.quorum, stage.on_timeout) for stage in rules.stages]
            return rules.requester_fields, stages, dict(rules.groups), rules.veto, rules.payload_digest

        return question(self) == question(other)

    def is_eligible(self, stage: int, person: str, groups: Iterable[str], *, approve: bool) -> bool:
        """Return whether a person may cast an own vote; veto holders that are not approvers may only reject."""
        if self.excludes(person):
            return False
        approvers = self.stages[stage].approvers
        if not approvers or self._names(approvers, person, groups):
            return True
        return not approve and self._names(self.veto, person, groups)

    def _names(self, names: Iterable[str], person: str, groups: Iterable[str]) -> bool:
        for name in names:
            if name == person:
                return True
            if is_group(name):
                group = group_of(name)
                if person in self.groups[group] if group in self.groups else group in groups:
                    return True
        return False

    def counted_votes(self, stage: int, votes: Iterable[Vote]) -> list[Vote]:
        """Return the votes that count in a stage."""
        return [vote for vote in votes if self.is_eligible(stage, vote.approver, vote.groups, approve=vote.approve)]

    def tally(self, stage: int, votes: Sequence[Vote]) -> tuple[ApprovalResult, list[Vote]] | None:
        """Return the result and the votes that led to it; None while more votes are needed.

        A veto rejects. With known approvers, the approval is rejected when the remaining ones cannot reach the quorum.
        With unknown approvers, the quorum applies to rejections too.
        """
        counted = self.counted_votes(stage, votes)
        approvals = [vote for vote in counted if vote.approve]
        rejections = [vote for vote in counted if not vote.approve]
        vetoes = [
            vote for vote in rejections if ANYONE in self.veto or self._names(self.veto, vote.approver, vote.groups)
        ]
        if vetoes:
            return ApprovalResult.REJECTED, vetoes
        quorum = self.stages[stage].quorum
        people = eligible_people(self.stages[stage].approvers, self.groups, self.excluded)
        if len(approvals) >= quorum:
            return ApprovalResult.APPROVED, approvals
        needed = quorum if people is None else len(people) - quorum + 1
        return (ApprovalResult.REJECTED, rejections) if len(rejections) >= needed else None

    def addressees(self, stage: int) -> frozenset[str]:
        """Return the inboxes of a stage: people, groups without known members, or `ANYONE`."""
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


class Approval(StoredRecord):
    """State of an approval.

    Args:
        approval_id: The approval.
        rules: The voting rules; None before the opening.
        opened_at: Opening time.
        stage: Current or last stage.
        deadline: Deadline of the stage.
        reminders: Number of reminders sent in the stage.
        closed_at: End of the approval.
        votes: One vote per person; votes before the opening are not checked yet.
        delegations: Latest delegation of each person.
        waiters: Awakeables by the ID of the wait.
        answered: IDs of the waits that were open at the end. Only these may read the outcome.
        outcome: The final outcome; None before the end.
        entries: Length of the audit log.
        head: Hash of the last audit entry.
        refusals: Number of refused actions.
        links_revoked: Revocation time of links by owner, under `ANYONE` for all links.
    """

    approval_id: str
    rules: Rules | None = None
    opened_at: AwareDatetime | None = None
    stage: int = 0
    deadline: AwareDatetime | None = None
    reminders: int = 0
    closed_at: AwareDatetime | None = None
    votes: tuple[Vote, ...] = ()
    delegations: tuple[Delegation, ...] = ()
    waiters: dict[str, str] = Field(default_factory=dict)
    answered: tuple[str, ...] = ()
    outcome: ApprovalOutcome | None = None
    entries: int = 0
    head: str = ""
    refusals: int = 0
    links_revoked: dict[str, AwareDatetime] = Field(default_factory=dict)

    @property
    def state(self) -> ApprovalState:
        """State in the status vocabulary."""
        if self.outcome is not None:
            return self.outcome.outcome
        return "expected" if self.rules is None else "open"

    @property
    def stage_rules(self) -> StageRules | None:
        """Rules of the current stage; None before the opening."""
        return None if self.rules is None else self.rules.stages[self.stage]

    def vote_by(self, person: str) -> Vote | None:
        """Return the vote that a person cast."""
        return next((vote for vote in self.votes if vote.actor == person), None)

    def vote_for(self, approver: str) -> Vote | None:
        """Return the vote that an approver or their delegate cast."""
        return next((vote for vote in self.votes if vote.approver == approver), None)

    def delegation_of(self, person: str) -> Delegation | None:
        """Return the delegation that a person made."""
        return next((delegation for delegation in self.delegations if delegation.actor == person), None)

    def final_deadline(self) -> datetime | None:
        """Return the deadline of the last stage; None before the opening."""
        if self.rules is None or self.deadline is None:
            return None
        following = self.rules.stages[self.stage + 1 :]
        return self.deadline + sum((stage.timeout for stage in following), timedelta(0))

    def is_overdue(self, at: datetime) -> bool:
        """Return whether the deadline of an open stage has passed."""
        return self.outcome is None and self.deadline is not None and at >= self.deadline

    def is_usable(self, delegation: Delegation) -> bool:
        """Return whether a delegation is usable in this stage, regardless of its expiry."""
        if self.rules is None or self.outcome is not None or self.vote_for(delegation.actor) is not None:
            return False
        return delegation.revoked_at is None and self.rules.is_eligible(
            self.stage, delegation.actor, delegation.groups, approve=False
        )

    def pending_approvers(self) -> frozenset[str]:
        """Return the people and groups that have not voted, and delegates; empty unless the approval is open."""
        if self.rules is None or self.outcome is not None:
            return frozenset()
        voters = {vote.actor for vote in self.votes}
        done = voters | {vote.approver for vote in self.votes}
        delegates = {delegation.to for delegation in self.delegations if self.is_usable(delegation)}
        return (self.rules.addressees(self.stage) - done) | (delegates - voters)


class Principal(StoredRecord):
    """Current rights of a person. Links, delegations and credentials are checked against them on use.

    Args:
        roles: Roles; None for a person that no user directory has stated.
        active: False for a disabled person.
        revoked_before: Links, delegations and credentials issued up to this time are revoked.
        as_of: Time of the latest statement.
    """

    roles: tuple[Role, ...] | None = None
    active: bool = True
    revoked_before: AwareDatetime | None = None
    as_of: AwareDatetime | None = None

    @classmethod
    def stated_by(cls, statement: PrincipalStatement) -> Principal:
        """Return the rights in a statement."""
        revoked_before = statement.revoked_before
        return cls(
            roles=tuple(sorted(set(statement.roles))),
            active=statement.active,
            revoked_before=None if revoked_before is None else revoked_before.astimezone(UTC),
            as_of=statement.as_of.astimezone(UTC),
        )

    def updated(self, stated: Principal) -> Principal:
        """Return the rights after a statement. An older statement adds only its revocation."""
        revoked = self.revoked(stated.revoked_before).revoked_before
        is_older = self.as_of is not None and (stated.as_of is None or stated.as_of < self.as_of)
        return (self if is_older else stated).model_copy(update={"revoked_before": revoked})

    def revoked(self, before: datetime | None) -> Principal:
        """Return the rights after a revocation, which is permanent."""
        known = [at for at in (self.revoked_before, before) if at is not None]
        return self.model_copy(update={"revoked_before": max(known, default=None)})

    def refusal(self, person: str, *, role: Role | None, issued_at: datetime | None, grant: str) -> Refused | None:
        """Return the error for a withdrawn right; None for a valid one.

        Args:
            person: Name of the person.
            role: Required role, if any.
            issued_at: Issue time of the link, delegation or credential.
            grant: What grants the right, for the message, such as ``link``.
        """
        if not self.active:
            return _rights_withdrawn(f"{person} is disabled; {grant} is void", "disabled")
        if role is not None and self.roles is not None and role not in self.roles:
            held = ", ".join(sorted(self.roles)) or "none"
            return _rights_withdrawn(f"{person} lacks the role {role} and has: {held}", "role")
        if issued_at is not None and self.revoked_before is not None and issued_at <= self.revoked_before:
            revoked_at = f"{self.revoked_before:%Y-%m-%d %H:%M:%S} UTC"
            return _rights_withdrawn(
                f"{grant} was issued before the rights of {person} changed or were revoked at {revoked_at}", "revoked"
            )
        return None


def _rights_withdrawn(message: str, why: str) -> Refused:
    return Refused(message, 403, "rights_withdrawn", metadata={"why": why})

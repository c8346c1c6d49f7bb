"""What goes to and from approvals, besides the question itself (`perdure.approvals.request`).

What comes from outside knows no other fields than its own: a rule that this version doesn't know must not be skipped in
silence. What is kept or shown ignores fields of later versions.
"""

from __future__ import annotations

from datetime import UTC
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from perdure._runtime.plain_text import Reason
from perdure.approvals.request import AwakeableId, Stage, WaitId
from perdure.approvals.rights import Principal
from perdure.security.credentials import Role
from perdure.security.links import MAX_TOKEN_LENGTH
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import GroupName, UserName


class ApprovalResult(StrEnum):
    """How an approval ended; it never changes again."""

    APPROVED = "approved"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    WITHDRAWN = "withdrawn"


ApprovalState: TypeAlias = Literal["expected", "open"] | ApprovalResult
"""``expected``: decisions are in, but nobody has opened it yet. ``open``: it can be decided. Else how it ended."""

ActionName: TypeAlias = Literal[
    "open",
    "approve",
    "reject",
    "delegate",
    "revoke_links",
    "revoke_delegation",
    "remind",
    "escalate",
    "expire",
    "leave",
    "withdraw",
]
"""What happens to an approval."""


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ApprovalOutcome(_Kept):
    """How an approval ended, as those who wait for it are told.

    Args:
        approval_id: The approval.
        outcome: How it ended.
        decided_by: Whose decisions made it so; empty when time ran out.
        reason: Why: what they said, or what happened.
    """

    approval_id: str
    outcome: ApprovalResult
    decided_by: list[str] = []
    reason: str = ""


class ApprovalAnswer(_Kept):
    """What `Approvals` tells a waiter.

    Args:
        wait: The id of the wait, which the waiter sent. An answer with another id is forged.
        outcome: How the approval ended; None while it is open.
    """

    wait: str
    outcome: ApprovalOutcome | None = None


class Listen(_Input):
    """Asks for the outcome of an approval that was opened or joined before.

    Args:
        wait: The id of the wait, as it was opened.
        awakeable: Wakes the waiter from now on, while the approval is open.
    """

    wait: WaitId
    awakeable: AwakeableId


class ActRequest(_Input):
    """What each act of a person on an approval says.

    Args:
        actor: Who acts.
        reason: Why.
        groups: What the actor belongs to, by the actor's own word: taken where unsigned acts are. A signed act's groups
            are those of its credential.
        proof: The act, signed by the actor; its target is ``Approvals/{id}``.
    """

    actor: UserName
    reason: Reason = ""
    groups: list[GroupName] = Field(default=[], max_length=100)
    proof: SignedAction | None = None


class DecisionRequest(ActRequest):
    """A person's approval or rejection, as it comes in; the handler says which of the two.

    Args:
        actor: Who decides.
        reason: Why.
        groups: See `ActRequest`.
        proof: See `ActRequest`; the act ``approve`` or ``reject``, without details.
    """


class DelegationRequest(ActRequest):
    """A person's wish that somebody else may decide in their place.

    Args:
        actor: Who delegates.
        to: Who may decide then, once.
        until: Until when.
        reason: Why.
        groups: See `ActRequest`.
        proof: See `ActRequest`; the act ``delegate``, details see `perdure.approvals.signatures.delegation_details`.
    """

    to: UserName
    until: AwareDatetime

    @model_validator(mode="after")
    def _to_somebody_else(self) -> DelegationRequest:
        if self.to == self.actor:
            raise ValueError("to: somebody else than the actor is needed")
        return self


class WithdrawalRequest(ActRequest):
    """The requester's wish that nobody decides any more.

    Args:
        actor: The requester.
        reason: Why.
        groups: See `ActRequest`.
        proof: See `ActRequest`; the act ``withdraw``, without details.
    """


class LinkRevocationRequest(ActRequest):
    """A wish that links to this approval, as far as they were sent, no longer decide.

    Args:
        actor: The person whose links they are, the requester, an operator or an administrator.
        person: The person whose links end; everybody's when left out.
        reason: Why.
        groups: See `ActRequest`.
        proof: See `ActRequest`; the act ``revoke_links``, its details see `perdure.approvals.signatures.link_details`.
    """

    person: UserName | None = None


class PrincipalRequest(_Input):
    """What each action on a person's rights says.

    Args:
        actor: The person or program that acts.
        reason: Why.
        proof: The action, signed by the actor; its target is ``Principals/{person}``.
    """

    actor: UserName
    reason: Reason = ""
    proof: SignedAction | None = None


class PrincipalStatement(PrincipalRequest):
    """A directory's statement of a person's rights.

    Args:
        actor: See `PrincipalRequest`.
        roles: The person's roles.
        active: False for a person who is disabled.
        revoked_before: What was issued up to this moment no longer holds; None revokes nothing.
        as_of: The moment of the statement. A statement that is older than a known one does not replace it.
        reason: Why.
        proof: See `PrincipalRequest`; the act ``put``, its details are the statement.
    """

    roles: list[Role]
    active: bool
    revoked_before: AwareDatetime | None = None
    as_of: AwareDatetime

    @property
    def principal(self) -> Principal:
        """The rights that are stated."""
        return Principal(
            roles=tuple(sorted(set(self.roles))),
            active=self.active,
            revoked_before=None if self.revoked_before is None else self.revoked_before.astimezone(UTC),
            as_of=self.as_of.astimezone(UTC),
        )


class RevocationRequest(PrincipalRequest):
    """A wish that every link, delegation and credential of a person, as far as they were issued, ends now.

    Args:
        actor: The person, or an administrator.
        reason: Why.
        proof: See `PrincipalRequest`; the act ``revoke``, without details.
    """


class LinkDecisionRequest(_Input):
    """A decision by somebody who was sent a link.

    Args:
        token: The link's token.
        approve: True to approve, False to reject.
        reason: Why.
    """

    token: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TOKEN_LENGTH)]
    approve: bool
    reason: Reason = ""


class Decision(_Kept):
    """A person's decision, as it is kept.

    Args:
        actor: Who decided.
        approve: True for an approval, False for a rejection.
        reason: Why.
        at: When.
        on_behalf_of: Who delegated it to them; None when they decided in their own right.
        groups: What the actor, or who delegated to them, belongs to.
        signed: The actor proved who they are, by a signed act or a link.
        payload_digest: What they were shown, when that was before the approval was opened.
    """

    actor: str
    approve: bool
    reason: str = ""
    at: AwareDatetime
    on_behalf_of: str | None = None
    groups: list[str] = []
    signed: bool = False
    payload_digest: str | None = None

    @property
    def act(self) -> Literal["approve", "reject"]:
        """What was decided, in a word."""
        return "approve" if self.approve else "reject"

    @property
    def seat(self) -> str:
        """Whose right to decide was used."""
        return self.on_behalf_of or self.actor


class Delegation(_Kept):
    """A right to decide in somebody's place, once.

    Args:
        actor: Who delegated.
        to: Who may decide.
        until: Until when, not included.
        at: When it was delegated.
        reason: Why.
        groups: What the delegating person belongs to.
        signed: The delegating person proved who they are.
        revoked_at: When it was found to be revoked; None as long as it holds.
    """

    actor: str
    to: str
    until: AwareDatetime
    at: AwareDatetime
    reason: str = ""
    groups: list[str] = []
    signed: bool = False
    revoked_at: AwareDatetime | None = None


class DecisionReceipt(_Kept):
    """What a person gets for a decision: the one that counts, and how the approval stands now.

    Args:
        approval_id: The approval.
        actor: Who decided.
        act: What was decided.
        reason: Why, as said the first time.
        at: When it was decided, the first time.
        status: How the approval stands.
        on_behalf_of: In whose place; None when in their own right.
        signed: The actor proved who they are.
    """

    approval_id: str
    actor: str
    act: Literal["approve", "reject"]
    reason: str
    at: AwareDatetime
    status: ApprovalState
    on_behalf_of: str | None = None
    signed: bool = False


class DelegationReceipt(_Kept):
    """What a person gets for a delegation.

    Args:
        approval_id: The approval.
        actor: Who delegated.
        to: Who may decide in their place.
        until: Until when.
        at: When it was delegated.
        status: How the approval stands.
    """

    approval_id: str
    actor: str
    to: str
    until: AwareDatetime
    at: AwareDatetime
    status: ApprovalState


class LinkRevocationReceipt(_Kept):
    """What a person gets for a revocation of links.

    Args:
        approval_id: The approval.
        actor: The person who revoked them.
        person: The person whose links they were; None for everybody's.
        at: When. Links that are issued later decide.
        status: How the approval stands.
    """

    approval_id: str
    actor: str
    person: str | None
    at: AwareDatetime
    status: ApprovalState


class WithdrawalReceipt(_Kept):
    """What the requester gets for a withdrawal.

    Args:
        approval_id: The approval.
        actor: Who withdrew it.
        at: When.
        status: How the approval stands.
    """

    approval_id: str
    actor: str
    at: AwareDatetime
    status: ApprovalState


class Leave(_Input):
    """The end of a waiter's interest in an approval.

    Args:
        wait: The wait that ends; the approval is withdrawn when it was the last one. None withdraws it for all.
        reason: Why.
    """

    wait: str | None = None
    reason: Reason = ""


class StageEnd(_Kept):
    """The end of a stage's time, sent when the stage began.

    Args:
        stage: The stage that it is about; when another one is under way, it does nothing.
        opened_at: When the approval was opened; when that was at another moment, it is of an earlier approval of the
            same id, and does nothing. None when the version before sent it.
    """

    stage: int
    opened_at: AwareDatetime | None = None


class ReminderDue(_Kept):
    """The moment of a reminder, sent when the stage began or the one before was due.

    Args:
        stage: The stage; when another one is under way, nothing happens.
        number: 1 for the first reminder of the stage; one that isn't the next does nothing.
        opened_at: See `StageEnd`.
    """

    stage: int
    number: int
    opened_at: AwareDatetime | None = None


class RetentionEnd(_Kept):
    """The moment when an approval is forgotten.

    Args:
        closed_at: When it had ended; None for one that was never opened. When it stands otherwise, nothing happens.
        nonces_until: Until when nonces that it left have to be known: nothing but those that are over is forgotten
            then. None when it is the approval that is forgotten.
    """

    closed_at: AwareDatetime | None
    nonces_until: AwareDatetime | None = None


class AuditEntry(_Kept):
    """One entry of an approval's audit log. Entries are never changed; `perdure.approvals.audit_log` checks that.

    Args:
        seq: 1 for the first entry.
        at: When.
        actor: Who; None when it was nobody, as when time ran out.
        act: What was done, or tried.
        reason: Why, in the actor's words.
        result: What came of it: ``opened``, ``joined``, ``kept`` (until it is opened), ``counted``, ``delegated``,
            ``reminded``, ``escalated``, ``left``, ``revoked``, how the approval ended, or ``refused:`` and the code of
            the refusal.
        details: More facts.
        proof: The act as the actor signed it.
        hash: SHA-256 over this entry and the one before.
    """

    seq: int
    at: AwareDatetime
    actor: str | None
    act: ActionName
    reason: str = ""
    result: str
    details: dict[str, str] = {}
    proof: SignedAction | None = None
    hash: str = ""


class ApprovalStatus(_Kept):
    """An approval, as it is shown.

    Args:
        approval_id: The approval.
        status: ``open``, or how it ended.
        title: What is to be decided.
        requester: Who asks, a person or a program such as ``key:shop``; empty when it's nobody in particular.
        requester_verified: Whether the requester was authenticated.
        requester_owner: The person who made the requesting program's API key.
        subject: The person whom the business is about, by the caller's word.
        approvers: Who may decide in this stage, people and groups; empty when anyone but requester and subject may.
        groups: Members of groups, as far as the request names them.
        veto: Whose single rejection ends it.
        quorum: How many approvals are needed in this stage.
        stage: Which stage is under way, or was at the end; 0 is the first.
        stages: All stages.
        payload: What the approvers are shown.
        payload_digest: SHA-256 of the payload's canonical JSON.
        opened_at: When it was opened.
        deadline: Until when it can be decided in this stage.
        decided_at: When it ended.
        decided_by: Whose decisions ended it.
        reason: Why it ended so.
        decisions: What was decided, in the order of counting.
        delegations: Who may decide in whose place.
        waits_for: Whose inboxes it is in.
        reminders: How many reminders were sent in this stage.
        refusals: How many acts were refused; the audit log holds the first ones of them.
        audit_log: Everything that happened, in order.
        head: Hash of the audit log's last entry.
        links_revoked: Up to when links no longer decide, by person, and under ``anyone`` for everybody's.
    """

    approval_id: str
    status: ApprovalState
    title: str
    requester: str
    requester_verified: bool = False
    requester_owner: str = ""
    subject: str = ""
    approvers: list[str]
    groups: dict[str, list[str]] = {}
    veto: list[str] = []
    quorum: int
    stage: int = 0
    stages: list[Stage] = []
    payload: JsonValue
    payload_digest: str
    opened_at: AwareDatetime
    deadline: AwareDatetime
    decided_at: AwareDatetime | None
    decided_by: list[str]
    reason: str
    decisions: list[Decision]
    delegations: list[Delegation] = []
    waits_for: list[str] = []
    reminders: int = 0
    refusals: int
    audit_log: list[AuditEntry]
    head: str = ""
    links_revoked: dict[str, AwareDatetime] = {}

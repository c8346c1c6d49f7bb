"""Messages of the approval services, except the request that opens an approval (`perdure.approvals.request`).

Requests refuse unknown fields, so that a rule of a later version is never ignored. Responses ignore unknown fields.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from perdure._runtime.plain_text import Reason
from perdure.approvals.request import AwakeableId, Requester, Stage, WaitId
from perdure.security.credentials import Credential, Role
from perdure.security.links import MAX_TOKEN_LENGTH
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import GroupName, UserName

MAX_PAGE: Final = 500
"""Maximum number of approvals in one page of an inbox."""


class ApprovalResult(StrEnum):
    """Final result of an approval."""

    APPROVED = "approved"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    WITHDRAWN = "withdrawn"


ApprovalState: TypeAlias = Literal["expected", "open"] | ApprovalResult
"""``expected``: votes arrived before the approval was opened. ``open``: votes are accepted. Else the result."""

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
"""Name of an event in an approval's audit log."""

NotificationKind: TypeAlias = Literal["asked", "reminder", "escalated", "delegated"]
"""Event that a notification reports."""


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ApprovalOutcome(_Record):
    """Outcome of an approval.

    Args:
        approval_id: The approval.
        outcome: The result.
        decided_by: People whose votes led to the result; empty after a timeout.
        reason: Reasons of the voters, or a description of the event.
    """

    approval_id: str
    outcome: ApprovalResult
    decided_by: list[str] = []
    reason: str = ""


class ApprovalAnswer(_Record):
    """Response of `Approvals` to a waiting orchestration.

    Args:
        wait: ID of the wait, as sent by the waiter. A response with another ID is forged.
        outcome: The outcome; None while the approval is open.
    """

    wait: str
    outcome: ApprovalOutcome | None = None


class Listen(_Input):
    """Request of a waiter for the outcome.

    Args:
        wait: ID of the wait.
        awakeable: Awakeable to complete from now on.
    """

    wait: WaitId
    awakeable: AwakeableId


class Leave(_Input):
    """End of a wait.

    Args:
        wait: The wait that ends. The approval is withdrawn with its last wait. None ends all waits.
        reason: Reason for the audit log.
    """

    wait: str | None = None
    reason: Reason = ""


class ApprovalActionRequest(_Input):
    """Fields of every action of a person on an approval.

    Args:
        actor: The acting person.
        reason: Reason for the audit log.
        groups: Claimed groups of the actor. For a signed action, the groups of its credential count.
        signed_action: The action, signed by the actor for the target ``Approvals/{id}``.
    """

    actor: UserName
    reason: Reason = ""
    groups: list[GroupName] = Field(default=[], max_length=100)
    signed_action: SignedAction | None = None

    @property
    def credential(self) -> Credential | None:
        """Credential of a signed action. `perdure.approvals.signatures.check_action` verifies it."""
        return None if self.signed_action is None else self.signed_action.credential

    @property
    def actor_groups(self) -> list[str]:
        """Groups of the credential; of an unsigned action, the claimed ones."""
        return list(self.groups if self.credential is None else self.credential.groups)


class DecisionRequest(ApprovalActionRequest):
    """Approval or rejection by a person. Its signed action is ``approve`` or ``reject``, without details."""


class DelegationRequest(ApprovalActionRequest):
    """Delegation of a vote. `perdure.approvals.signatures.delegation_details` are the details of its signed action.

    Args:
        to: The delegate.
        until: Expiry.
    """

    to: UserName
    until: AwareDatetime

    @model_validator(mode="after")
    def _refuse_own_name(self) -> DelegationRequest:
        if self.to == self.actor:
            raise ValueError("to: the delegate must differ from the actor")
        return self


class WithdrawalRequest(ApprovalActionRequest):
    """Withdrawal of an approval by its requester. Its signed action is ``withdraw``, without details."""


class LinkRevocationRequest(ApprovalActionRequest):
    """Revocation of issued links. `perdure.approvals.signatures.link_details` are the details of its signed action.

    The owner of the links, the requester, an operator and an administrator may revoke links.

    Args:
        person: Owner of the links; None for all links to the approval.
    """

    person: UserName | None = None

    @property
    def may_revoke_all(self) -> bool:
        """Whether the actor may revoke links of others; an unsigned action claims every role."""
        return self.credential is None or not {Role.OPERATOR, Role.ADMINISTRATOR}.isdisjoint(self.credential.roles)


class LinkDecisionRequest(_Input):
    """Approval or rejection with a link.

    Args:
        token: Token of the link.
        approve: True to approve, False to reject.
        reason: Reason for the audit log.
    """

    token: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TOKEN_LENGTH)]
    approve: bool
    reason: Reason = ""


class PrincipalRequest(_Input):
    """Fields of every action on a principal.

    Args:
        actor: The acting person or program.
        reason: Reason.
        signed_action: The action, signed by the actor for the target ``Principals/{person}``.
    """

    actor: UserName
    reason: Reason = ""
    signed_action: SignedAction | None = None


class PrincipalStatement(PrincipalRequest):
    """Statement of a user directory about a person. Its signed action is ``put``, with the statement as details.

    Args:
        roles: Roles of the person.
        active: False for a disabled person.
        revoked_before: Links, delegations and credentials issued up to this time are revoked.
        as_of: Time of the statement. An older statement does not replace a newer one.
    """

    roles: list[Role]
    active: bool
    revoked_before: AwareDatetime | None = None
    as_of: AwareDatetime


class RevocationRequest(PrincipalRequest):
    """Revocation of all links, delegations and credentials of a person.

    The person and administrators may send it. Its signed action is ``revoke``, without details.
    """


class Vote(_Record):
    """Stored vote of a person.

    Args:
        actor: The voter.
        approve: True for an approval, False for a rejection.
        reason: Reason of the voter.
        at: Time of the vote.
        on_behalf_of: UserName who delegated the vote; None for an own vote.
        groups: Groups of the approver.
        signed: Whether the voter was authenticated by a signed action or a link.
        payload_digest: Digest of the payload that an early voter was shown.
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
    def action(self) -> Literal["approve", "reject"]:
        """Name of the action."""
        return "approve" if self.approve else "reject"

    @property
    def approver(self) -> str:
        """Person whose right to vote is used."""
        return self.on_behalf_of or self.actor


class Delegation(_Record):
    """Stored delegation of a vote.

    Args:
        actor: The delegator.
        to: The delegate.
        until: Expiry.
        at: Time of the delegation.
        reason: Reason of the delegator.
        groups: Groups of the delegator.
        signed: Whether the delegator was authenticated.
        revoked_at: Time at which a revocation was detected; None for a valid delegation.
    """

    actor: str
    to: str
    until: AwareDatetime
    at: AwareDatetime
    reason: str = ""
    groups: list[str] = []
    signed: bool = False
    revoked_at: AwareDatetime | None = None


class AuditEntry(_Record):
    """Entry of an approval's audit log; `perdure.approvals.audit_log` verifies it.

    Args:
        seq: Position, from 1.
        at: Time of the action.
        actor: Actor; None for events of the service, such as a timeout.
        action: The action.
        reason: Reason of the actor.
        result: ``opened``, ``joined``, ``early`` (a vote before the opening), ``counted``, ``delegated``, ``reminded``,
            ``escalated``, ``left``, ``revoked``, the approval's result, or ``refused:`` and an error code.
        details: Further facts.
        signed_action: The signed action.
        hash: SHA-256 over this entry and the previous hash.
    """

    seq: int
    at: AwareDatetime
    actor: str | None
    action: ActionName
    reason: str = ""
    result: str
    details: dict[str, str] = {}
    signed_action: SignedAction | None = None
    hash: str = ""


class _Receipt(_Record):
    approval_id: str
    actor: str
    at: AwareDatetime
    status: ApprovalState


class DecisionReceipt(_Receipt):
    """Receipt for a vote. A repeated request gets the receipt of the first one.

    Args:
        approval_id: The approval.
        actor: The voter.
        action: The decision.
        reason: Reason of the voter.
        at: Time of the vote.
        status: State of the approval.
        on_behalf_of: The delegator; None for an own vote.
        signed: Whether the voter was authenticated.
    """

    action: Literal["approve", "reject"]
    reason: str
    on_behalf_of: str | None = None
    signed: bool = False


class DelegationReceipt(_Receipt):
    """Receipt for a delegation.

    Args:
        approval_id: The approval.
        actor: The delegator.
        to: The delegate.
        until: Expiry.
        at: Time of the delegation.
        status: State of the approval.
    """

    to: str
    until: AwareDatetime


class LinkRevocationReceipt(_Receipt):
    """Receipt for a revocation of links.

    Args:
        approval_id: The approval.
        actor: The revoking person.
        person: Owner of the links; None for all links.
        at: Links issued up to this time are revoked.
        status: State of the approval.
    """

    person: str | None


class WithdrawalReceipt(_Receipt):
    """Receipt for a withdrawal.

    Args:
        approval_id: The approval.
        actor: The requester.
        at: Time of the withdrawal.
        status: State of the approval.
    """


class StageEnd(_Record):
    """Timer at the deadline of a stage.

    Args:
        stage: The stage.
        opened_at: Opening time of the approval, which differs between approvals of the same ID.
    """

    stage: int
    opened_at: AwareDatetime


class ReminderDue(_Record):
    """Timer of a reminder.

    Args:
        stage: The stage.
        number: Number of the reminder in its stage, from 1.
        opened_at: See `StageEnd`.
    """

    stage: int
    number: int
    opened_at: AwareDatetime


class RetentionEnd(_Record):
    """Timer at the end of an approval's retention.

    Args:
        closed_at: End of the approval; None for one that was never opened.
        nonces_until: Latest expiry of the remaining nonces; None while the approval itself is stored.
    """

    closed_at: AwareDatetime | None
    nonces_until: AwareDatetime | None = None


class ApprovalSummary(_Record, Requester):
    """Approval as its status and the inboxes show it.

    Args:
        approval_id: The approval; decide it at ``/Approvals/{approval_id}/approve`` or ``reject``.
        title: The request in one sentence.
        requester: See `perdure.approvals.request.Requester`.
        requester_verified: See `requester`.
        requester_owner: See `requester`.
        subject: See `requester`.
        quorum: Number of approvals needed in this stage.
        stage: Current or last stage, from 0.
        opened_at: Opening time.
        deadline: Deadline of this stage; in an inbox, the expiry of the delegation if that is sooner.
        payload: The data that approvers decide on.
        payload_digest: Digest of the payload.
    """

    approval_id: str
    title: str
    quorum: int
    stage: int = 0
    opened_at: AwareDatetime
    deadline: AwareDatetime
    payload: JsonValue
    payload_digest: str


class ApprovalStatus(ApprovalSummary):
    """Status of an approval. `ApprovalSummary` describes the fields that are not listed here.

    Args:
        status: ``open``, or the result.
        approvers: People and groups that may vote in this stage; empty for anyone except requester and subject.
        groups: Known members of groups.
        veto: People and groups whose single rejection rejects the approval.
        stages: All stages.
        decided_at: End of the approval.
        decided_by: People whose votes led to the result.
        reason: Reason of the result.
        decisions: The votes, in order.
        delegations: The delegations.
        pending_approvers: People and groups in whose inboxes the approval is.
        reminders: Number of reminders sent in this stage.
        refusals: Number of refused actions; the audit log records a limited number of them.
        audit_log: The audit log.
        head: Hash of the last audit entry.
        links_revoked: Revocation time of links by owner, under ``anyone`` for all links.
    """

    status: ApprovalState
    approvers: list[str]
    groups: dict[str, list[str]] = {}
    veto: list[str] = []
    stages: list[Stage] = []
    decided_at: AwareDatetime | None
    decided_by: list[str]
    reason: str
    decisions: list[Vote]
    delegations: list[Delegation] = []
    pending_approvers: list[str] = []
    reminders: int = 0
    refusals: int
    audit_log: list[AuditEntry]
    head: str = ""
    links_revoked: dict[str, AwareDatetime] = {}


class InboxItem(ApprovalSummary):
    """Open approval in an inbox. `ApprovalSummary` describes the fields that are not listed here.

    Args:
        addressee: Owner of the inbox: a person, a group or ``anyone``.
        delegated_by: The delegator; None for an own vote.
    """

    addressee: str = ""
    delegated_by: str | None = None


class InboxRemoval(_Record):
    """Removal of an approval from an inbox.

    Args:
        approval_id: The approval.
        deadline: Deadline of the inbox item, which is a part of its key.
    """

    approval_id: str
    deadline: AwareDatetime


class InboxQuery(_Input):
    """Query of an inbox.

    Args:
        limit: Maximum number of approvals.
        after: `InboxPage.next` of the previous page.
        groups: Groups whose inboxes are included. The inbox does not know the members of groups.
    """

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    after: Annotated[str, StringConstraints(max_length=1000)] | None = None
    groups: list[GroupName] = Field(default=[], max_length=100)


class UnreadableInboxItem(_Record):
    """An open approval whose entry in the inbox cannot be read, for example because its encryption key is missing.

    Args:
        approval_id: The approval.
        error: Why, and what to do.
    """

    approval_id: str
    error: str


class InboxPage(_Record):
    """Page of an inbox, ordered by deadline.

    Args:
        items: The approvals.
        unreadable: Approvals of this page that cannot be read.
        next: Cursor of the next page; None on the last one.
        total: Number of approvals in all queried inboxes, including those that the person may not decide.
    """

    items: list[InboxItem]
    unreadable: list[UnreadableInboxItem] = []
    next: str | None
    total: int

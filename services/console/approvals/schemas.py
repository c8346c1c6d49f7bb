"""Messages of the approvals API, and of the calls to the approvals service.

The console defines its own view of the service's messages, with the fields that it shows.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from perdure._runtime.plain_text import Reason
from perdure.approvals.request import requester_text
from perdure.security import Link
from perdure.security.user_names import ANYONE, shares_mailbox

Decision = Literal["approve", "reject"]


class Requested(BaseModel):
    """The origin of an approval.

    Args:
        requester: The authenticated caller, or the subject when no caller is authenticated.
        requester_verified: Whether the requester is authenticated.
        requester_owner: The user who created the API key of a requesting program.
        subject: The person concerned, as stated by the caller.
    """

    requester: str = ""
    requester_verified: bool = False
    requester_owner: str = ""
    subject: str = ""

    @property
    def requester_text(self) -> str:
        """Requester and subject, as users read them."""
        return requester_text(self.requester, verified=self.requester_verified, subject=self.subject)

    def excludes(self, user: str) -> bool:
        """Return whether a user may not vote, being requester or subject."""
        return shares_mailbox(user, (self.requester, self.requester_owner, self.subject))


class InboxItem(Requested):
    """An open approval in an inbox.

    Args:
        approval_id: The approval.
        title: Its title.
        quorum: The number of votes that it needs.
        opened_at: When it was opened.
        deadline: When it expires.
        payload: The payload to decide on.
        payload_digest: The payload's digest.
        addressee: The inbox: a user's, a group's, or anyone's.
        delegated_by: The user who delegated it.
    """

    approval_id: str
    title: str
    quorum: int = 1
    opened_at: AwareDatetime
    deadline: AwareDatetime
    payload: JsonValue = None
    payload_digest: str
    addressee: str = ""
    delegated_by: str | None = None


class Inbox(BaseModel):
    """The open approvals for a user, most urgent first, at most 200.

    `total` may count an approval twice that is in several inboxes, when there are more than 200.
    """

    items: list[InboxItem]
    total: int


class InboxQuery(BaseModel):
    """The page of an inbox to read."""

    limit: int = Field(ge=1, le=500)
    after: str | None = None


class InboxPage(BaseModel):
    """A page of an inbox."""

    items: list[InboxItem]
    next: str | None = None
    total: int


class VoteView(BaseModel):
    """A vote."""

    actor: str
    approve: bool
    reason: str = ""
    at: AwareDatetime
    on_behalf_of: str | None = None
    signed: bool = False


class DelegationView(BaseModel):
    """A delegation."""

    actor: str
    to: str
    until: AwareDatetime
    reason: str = ""
    revoked_at: AwareDatetime | None = None


class AuditEntryView(BaseModel):
    """An entry of the audit log of an approval."""

    seq: int
    at: AwareDatetime
    actor: str | None = None
    action: str
    reason: str = ""
    result: str
    details: dict[str, str] = {}
    hash: str | None = None


class ApprovalView(Requested):
    """An approval."""

    approval_id: str
    status: str
    title: str = ""
    approvers: list[str] = []
    pending_approvers: list[str] = []
    veto: list[str] = []
    quorum: int = 1
    stage: int = 0
    stages: list[dict[str, JsonValue]] = []
    payload: JsonValue = None
    payload_digest: str = ""
    opened_at: AwareDatetime | None = None
    deadline: AwareDatetime | None = None
    decided_at: AwareDatetime | None = None
    decided_by: list[str] = []
    reason: str = ""
    decisions: list[VoteView] = []
    delegations: list[DelegationView] = []
    reminders: int = 0
    refusals: int = 0
    audit_log: list[AuditEntryView] = []
    head: str | None = None
    links_revoked: dict[str, AwareDatetime] = {}

    def accepts_link(self, link: Link) -> bool:
        """Return whether a link still decides it, apart from the rights of the link's owner."""
        revoked = [self.links_revoked[name] for name in (link.person, ANYONE) if name in self.links_revoked]
        is_older = self.opened_at is None or link.issued_at < self.opened_at
        is_revoked = any(link.issued_at <= at for at in revoked)
        return self.is_open and self.payload_digest == link.payload_digest and not (is_older or is_revoked)

    @property
    def is_open(self) -> bool:
        """Whether it can be decided."""
        return self.status == "open"


class DecisionReceipt(BaseModel):
    """The result of a vote.

    Args:
        approval_id: The approval.
        actor: The user who voted.
        action: The vote.
        reason: The reason.
        at: The time of the vote.
        status: The status of the approval after it.
        on_behalf_of: The user who delegated the vote.
        signed: Whether the vote is signed.
    """

    approval_id: str
    actor: str
    action: str
    reason: str = ""
    at: AwareDatetime
    status: str
    on_behalf_of: str | None = None
    signed: bool = False


class DelegationReceipt(BaseModel):
    """The result of a delegation."""

    approval_id: str
    actor: str
    to: str
    until: AwareDatetime
    at: AwareDatetime
    status: str


class LinkRevocationReceipt(BaseModel):
    """The result of a revocation of links; `person` is None for the links of all users."""

    approval_id: str
    actor: str
    person: str | None = None
    at: AwareDatetime
    status: str


class DecisionInput(BaseModel):
    """The parameters of a vote.

    Args:
        reason: The reason.
        payload_digest: The digest of the payload as shown. The vote fails if the payload has changed.
    """

    model_config = ConfigDict(extra="forbid")

    reason: Reason = ""
    payload_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class DelegationInput(BaseModel):
    """Parameters of a delegation: the delegate and the expiry."""

    model_config = ConfigDict(extra="forbid")

    to: Annotated[str, Field(min_length=1, max_length=200)]
    until: AwareDatetime
    reason: Reason = ""


class LinkRevocationInput(BaseModel):
    """The parameters of a revocation of links: of one user, or of all without `person`."""

    model_config = ConfigDict(extra="forbid")

    person: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    reason: Reason = ""

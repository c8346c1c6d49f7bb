"""Messages of the approvals API. It shows the service's own messages, without the signed actions of the audit log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from perdure._runtime.plain_text import Reason
from perdure.approvals.messages import ApprovalStatus, AuditEntry, InboxItem, UnreadableInboxItem
from perdure.security import Link, SignedAction
from perdure.security.user_names import ANYONE

Decision = Literal["approve", "reject"]


class Inbox(BaseModel):
    """The open approvals for a user, most urgent first, at most 200.

    `total` may count an approval twice that is in several inboxes, when there are more than 200.
    """

    items: list[InboxItem]
    unreadable: list[UnreadableInboxItem] = []
    total: int


class AuditEntryView(AuditEntry):
    """An entry of the audit log of an approval."""

    signed_action: Annotated[SignedAction | None, Field(exclude=True)] = None


class ApprovalView(ApprovalStatus):
    """An approval."""

    audit_log: list[AuditEntryView]  # type: ignore[assignment]  # list is invariant

    def accepts_link(self, link: Link) -> bool:
        """Return whether a link still decides it, apart from the rights of the link's owner."""
        revoked = [self.links_revoked[name] for name in (link.person, ANYONE) if name in self.links_revoked]
        is_older = link.issued_at < self.opened_at
        is_revoked = any(link.issued_at <= at for at in revoked)
        return self.is_open and self.payload_digest == link.payload_digest and not (is_older or is_revoked)

    @property
    def is_open(self) -> bool:
        """Whether it can be decided."""
        return self.status == "open"


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

"""What people are told of approvals that wait for them."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ConfigDict

from perdure.approvals.approval import NewsKind
from perdure.approvals.request import asked_by


class Recipient(BaseModel):
    """Somebody to tell.

    Args:
        name: A person, a group as ``group:finance``, or `perdure.security.user_names.ANYONE`.
        until: Until when they may decide.
        in_place_of: Who delegated it to them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    until: AwareDatetime
    in_place_of: str | None = None


class Tell(BaseModel):
    """People to tell of one approval, on the way to the dispatcher.

    Args:
        kind: Why.
        approval_id: The approval.
        title: What is to be decided.
        requester: Who asks.
        requester_verified: Whether the requester was authenticated.
        subject: The person whom the business is about, by the caller's word.
        payload_digest: What they are shown.
        stage: Which stage is under way.
        number: Which reminder it is.
        at: When.
        recipients: Whom.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: NewsKind
    approval_id: str
    title: str
    requester: str
    requester_verified: bool = False
    subject: str = ""
    payload_digest: str
    stage: int
    number: int = 0
    at: AwareDatetime
    recipients: list[Recipient]


class ApprovalNotice(BaseModel):
    """What one recipient is told, as a hosting service's target gets it.

    A notice holds no link, so that neither the journal nor a database has one. The service that delivers the notice
    mints the link at that moment: see `perdure.approvals.links.LinkMinter`.

    Args:
        key: The same for the same notice, whoever sends it again.
        kind: ``asked`` when it was opened, ``reminder``, ``escalated`` to those who may decide then, or ``delegated``.
        approval_id: The approval.
        to: A person, a group as ``group:finance``, or ``anyone``.
        title: What is to be decided.
        requester: Who asks; empty when it's nobody in particular.
        requester_verified: Whether the requester was authenticated.
        subject: The person whom the business is about, by the caller's word.
        payload_digest: Digest of what they are shown.
        at: When the notice was made.
        until: Until when they may decide.
        in_place_of: Who delegated it to them; None when it is their own right.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    kind: NewsKind
    approval_id: str
    to: str
    title: str
    requester: str
    requester_verified: bool = False
    subject: str = ""
    payload_digest: str
    at: AwareDatetime
    until: AwareDatetime
    in_place_of: str | None = None

    @property
    def text(self) -> str:
        """What to say, in a few sentences."""
        why = {
            "asked": "An approval waits for you",
            "reminder": "An approval still waits for you",
            "escalated": "An approval was not decided in time, and now waits for you",
            "delegated": f"{self.in_place_of} asks you to decide in their place",
        }[self.kind]
        asker = asked_by(self.requester, verified=self.requester_verified, subject=self.subject)
        asks = f", asked by {asker}" if asker else ""
        return f"{why}: {self.title}{asks}.\nIt can be decided until {self.until:%Y-%m-%d %H:%M} UTC."

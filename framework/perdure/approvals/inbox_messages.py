"""What goes to and from inboxes."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from perdure.security.user_names import GroupName, shares_mailbox

MAX_PAGE: Final = 500
"""How many approvals one page, or the plain list, holds at most."""


class InboxItem(BaseModel):
    """An open approval that waits for someone.

    Args:
        approval_id: The approval; decide at ``/Approvals/{approval_id}/approve`` or ``reject``.
        title: What is to be decided.
        requester: Who asks.
        requester_verified: Whether the requester was authenticated.
        requester_owner: The person who made the requesting program's API key.
        subject: The person whom the business is about, by the caller's word.
        quorum: How many approvals are needed.
        opened_at: When it was opened.
        deadline: Until when it can be decided; in somebody's place, until when the delegation holds, if that is sooner.
        payload: What the approvers are shown.
        payload_digest: SHA-256 of the payload's canonical JSON.
        stage: Which stage is under way; 0 is the first.
        for_whom: Whose inbox it is in: a person's, a group's, or anyone's.
        in_place_of: Who delegated it; None when it is decided in one's own right.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    approval_id: str
    title: str
    requester: str
    requester_verified: bool = False
    requester_owner: str = ""
    subject: str = ""
    quorum: int
    opened_at: AwareDatetime
    deadline: AwareDatetime
    payload: JsonValue
    payload_digest: str
    stage: int = 0
    for_whom: str = ""
    in_place_of: str | None = None

    def excludes(self, person: str) -> bool:
        """Tell if a person may not decide because it is their own request or business.

        Args:
            person: The person's canonical name.
        """
        return shares_mailbox(person, (self.requester, self.requester_owner, self.subject))


class InboxRemoval(BaseModel):
    """An approval that no longer waits.

    Args:
        approval_id: The approval.
        deadline: The deadline under which it is in the inbox.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    approval_id: str
    deadline: AwareDatetime


class InboxQuery(BaseModel):
    """Which part of an inbox is wanted.

    Args:
        limit: How many approvals at most.
        after: Where the page before ended; its `InboxPage.next`.
        groups: In a person's list, what waits for these groups is shown, too: who belongs to them isn't known here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    after: Annotated[str, StringConstraints(max_length=1000)] | None = None
    groups: list[GroupName] = Field(default=[], max_length=100)


class InboxPage(BaseModel):
    """A part of an inbox, the most urgent first.

    Args:
        items: The approvals.
        next: Where the next page begins; None when there is none.
        total: How many approvals wait in all inboxes that were looked at; what the person asked for counts, too.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    items: list[InboxItem]
    next: str | None
    total: int

"""Notifications about approvals, and the dispatcher that sends them to the application's handler."""

from __future__ import annotations

from typing import Any

import restate
from pydantic import AwareDatetime, BaseModel, ConfigDict

from perdure._runtime.dispatch import LONG_RETRIES
from perdure.approvals.messages import NotificationKind
from perdure.approvals.request import Requester
from perdure.approvals.schema import DISPATCHER
from perdure.clients import ServiceClient
from perdure.handlers import handler
from perdure.idempotency import digest_key
from perdure.targets import Target


class Recipient(BaseModel):
    """Recipient of a notification.

    Args:
        name: Person, group as ``group:finance``, or `perdure.security.user_names.ANYONE`.
        until: Deadline of the recipient's vote.
        delegated_by: The delegator.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    until: AwareDatetime
    delegated_by: str | None = None


class _Event(Requester):
    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: NotificationKind
    approval_id: str
    title: str
    payload_digest: str
    at: AwareDatetime


class NotificationBatch(_Event):
    """Event of one approval and its recipients, as sent to the dispatcher."""

    stage: int
    number: int = 0
    recipients: list[Recipient]


class ApprovalNotification(_Event):
    """Notification to one recipient, as sent to the application's handler.

    It holds no link, so that neither the journal nor a database stores one. The delivering service mints the link with
    `perdure.approvals.links.LinkMinter`.

    Args:
        key: Idempotency key of the notification.
        kind: ``asked`` at the opening, ``reminder``, ``escalated`` or ``delegated``.
        approval_id: The approval.
        to: Person, group as ``group:finance``, or ``anyone``.
        title: The request in one sentence.
        requester: Requesting person or program; may be empty.
        requester_verified: Whether the requester was authenticated.
        requester_owner: Owner of the requesting program's API key.
        subject: Person affected by the request, as stated by the caller.
        payload_digest: Digest of the payload.
        at: Time of the event.
        until: Deadline of the recipient's vote.
        delegated_by: The delegator; None for an own vote.
    """

    key: str
    to: str
    until: AwareDatetime
    delegated_by: str | None = None

    @property
    def text(self) -> str:
        """Text for the recipient."""
        event = {
            "asked": "Approval requested",
            "reminder": "Reminder: approval requested",
            "escalated": "Approval escalated to you",
            "delegated": f"{self.delegated_by} delegated an approval to you",
        }[self.kind]
        by = f", requested by {self.requester_text}" if self.requester_text else ""
        return f"{event}: {self.title}{by}.\nVote before {self.until:%Y-%m-%d %H:%M} UTC."


dispatch_notifications = Target(DISPATCHER, "dispatch", NotificationBatch, None)


class ApprovalDispatcher:
    """Sends notifications to the application's handler.

    The engine retries a send to an unknown handler without end, which would block `Approvals`. Its invocations are
    killed when the retries are exhausted.
    """

    def __init__(self, notify: Target[ApprovalNotification, Any] | None) -> None:
        self._notify = notify
        self.definition = restate.Service(
            DISPATCHER,
            description="Sends notifications about approvals.",
            ingress_private=True,
            invocation_retry_policy=LONG_RETRIES,
        )
        handler(self.definition, name=dispatch_notifications.handler)(self.dispatch)

    async def dispatch(self, ctx: restate.Context, batch: NotificationBatch) -> None:
        """Send each recipient a notification."""
        if self._notify is None:
            return
        for recipient in batch.recipients:
            notification = notification_for(batch, recipient)
            await ServiceClient(ctx, self._notify).send(notification, idempotency_key=notification.key)


def notification_for(batch: NotificationBatch, recipient: Recipient) -> ApprovalNotification:
    """Return the notification to one recipient."""
    return ApprovalNotification(
        **batch.model_dump(include=set(_Event.model_fields)),
        key=notification_key(batch.approval_id, batch.kind, batch.stage, batch.number, recipient),
        to=recipient.name,
        until=recipient.until,
        delegated_by=recipient.delegated_by,
    )


def notification_key(approval_id: str, kind: NotificationKind, stage: int, number: int, recipient: Recipient) -> str:
    """Return the idempotency key of a notification."""
    facts = (approval_id, kind, str(stage), str(number), recipient.name, recipient.until.isoformat())
    return f"approval:{digest_key(*facts)}"

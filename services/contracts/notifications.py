"""Notifications: a traveller is told how a trip ended, an approver what waits for them. Nothing can untell it.

What approvers are told is perdure's own message, `perdure.approvals.notifications.ApprovalNotification`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import StringConstraints

from perdure import Target
from perdure.approvals.notifications import ApprovalNotification
from services.contracts.messages import Email, Message, TripId, Write

NotificationKind: TypeAlias = Literal["trip-confirmed", "trip-refused"]


class SendNotification(Write):
    """Tell a traveller how a trip ended.

    Args:
        kind: ``trip-confirmed`` or ``trip-refused``. The audit takes a trip's outcome from here.
        recipient: The traveller's address.
        text: What to say, at most 2,000 characters.
    """

    kind: NotificationKind
    recipient: Email
    text: Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00]+$")]


class Notification(Message):
    """A notification that is on its way."""

    notification_id: str
    trip_id: TripId
    kind: NotificationKind


class ApprovalNoticeReceipt(Message):
    """A notice to an approver that is on its way."""

    key: str


notify = Target("Notifications", "notify", SendNotification, Notification)
tell_approver = Target("Notifications", "tell_approver", ApprovalNotification, ApprovalNoticeReceipt)

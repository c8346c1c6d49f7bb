"""Contract of Notifications: notify travellers and approvers.

Notices to approvers are messages of the library, `perdure.approvals.notifications.ApprovalNotification`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import StringConstraints

from perdure import Target
from perdure.approvals.notifications import ApprovalNotification
from services.contracts.messages import Email, Message, TripId, Write

NotificationKind: TypeAlias = Literal["trip-confirmed", "trip-refused"]


class SendNotification(Write):
    """Notify a traveller of the outcome of a trip.

    Args:
        kind: ``trip-confirmed`` or ``trip-refused``. The audit reads the outcome of a trip from it.
        recipient: Mail address of the traveller.
        text: At most 2,000 characters.
    """

    kind: NotificationKind
    recipient: Email
    text: Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00]+$")]


class Notification(Message):
    """Receipt of a notification."""

    notification_id: str
    trip_id: TripId
    kind: NotificationKind


class ApprovalNoticeReceipt(Message):
    """Receipt of a notice to an approver."""

    key: str


notify = Target("Notifications", "notify", SendNotification, Notification)
tell_approver = Target("Notifications", "tell_approver", ApprovalNotification, ApprovalNoticeReceipt)

"""Notifications: what travellers and approvers were told, each thing once."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import CheckConstraint, Index, Text, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from perdure.approvals.notices import ApprovalNotice
from services.contracts.notifications import ApprovalNoticeReceipt, Notification, SendNotification
from services.data_plane.barrier import Barrier
from services.data_plane.database import Base, Database, Timestamped, insert_if_missing


class NotificationRow(Timestamped, Base):
    """A message in the outbox. How a trip ended is read from here."""

    __tablename__ = "notifications"
    __table_args__ = (
        CheckConstraint("kind IN ('trip-confirmed', 'trip-refused')", name="kind"),
        Index("uq_notifications_key", "key", unique=True),
    )

    notification_id: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text)
    trip_id: Mapped[str] = mapped_column(Text, index=True)
    kind: Mapped[str] = mapped_column(Text)
    recipient: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)


class ApprovalNoticeRow(Timestamped, Base):
    """A message to an approver in the outbox. Its text may hold a link that decides, so it is a secret."""

    __tablename__ = "approval_notices"

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    approval_id: Mapped[str] = mapped_column(Text, index=True)
    kind: Mapped[str] = mapped_column(Text)
    recipient: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)


class Outbox:
    """Tell travellers how their trips ended, and approvers what waits for them.

    Args:
        database: Where messages are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._barrier = Barrier(database, "Notifications")

    async def notify(self, request: SendNotification) -> Notification:
        """Put a message into the outbox.

        Args:
            request: Trip, kind, recipient and text, under the caller's key.

        Raises:
            Conflict: See `Barrier.perform`.
        """

        async def put(connection: AsyncConnection) -> Notification:
            notification = Notification(notification_id=f"note-{uuid4()}", trip_id=request.trip_id, kind=request.kind)
            await connection.execute(
                insert(NotificationRow).values(
                    notification_id=notification.notification_id,
                    key=request.key,
                    trip_id=request.trip_id,
                    kind=request.kind,
                    recipient=request.recipient,
                    text=request.text,
                )
            )
            return notification

        return await self._barrier.perform("notify", request, put, Notification)

    async def tell_approver(self, notice: ApprovalNotice) -> ApprovalNoticeReceipt:
        """Put a message to an approver into the outbox; one with a key that is there already is there already.

        It needs no barrier: nothing undoes it, so its own key is enough.

        Args:
            notice: What to say to whom.
        """
        async with self._database.transaction() as connection:
            await insert_if_missing(
                connection,
                ApprovalNoticeRow,
                key=notice.key,
                approval_id=notice.approval_id,
                kind=notice.kind,
                recipient=notice.to,
                text=notice.text,
            )
        return ApprovalNoticeReceipt(key=notice.key)

"""Notifications: what travellers and approvers were told, each thing once."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import CheckConstraint, Index, Text, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from perdure.approvals.notifications import ApprovalNotification
from services.contracts.notifications import ApprovalNoticeReceipt, Notification, SendNotification
from services.data_plane.barrier import IdempotencyTable
from services.data_plane.database import Base, Database, Timestamped, insert_if_missing
from services.data_plane.notifications.mail import Mail


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
    """A notice to an approver that was delivered. A link that decides is in the mail, and not here."""

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
        mail: Sends approvers their notices; None for no mail.
    """

    def __init__(self, database: Database, mail: Mail | None = None) -> None:
        self._database = database
        self._mail = mail
        self._barrier = IdempotencyTable(database, "Notifications")

    async def notify(self, request: SendNotification) -> Notification:
        """Put a message into the outbox.

        Args:
            request: Trip, kind, recipient and text, under the caller's key.

        Raises:
            Conflict: See `IdempotencyTable.perform`.
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

    async def tell_approver(self, notice: ApprovalNotification) -> ApprovalNoticeReceipt:
        """Deliver a notice to an approver, and record that. A notice that is recorded is not delivered again.

        A crash between mail and record sends the mail again, with the same Message-ID and the same link. No
        idempotency table is needed: there is no compensation, and the notice has a key.

        Args:
            notice: What to say to whom.

        Raises:
            OSError: The mail server does not take it.
        """
        if self._mail is not None and not await self._is_recorded(notice.key):
            await self._mail.deliver(notice)
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

    async def _is_recorded(self, key: str) -> bool:
        async with self._database.snapshot() as connection:
            found = await connection.scalar(select(ApprovalNoticeRow.key).where(ApprovalNoticeRow.key == key))
        return found is not None

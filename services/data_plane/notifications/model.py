"""Notifications to travellers and approvers."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import insert, select

from perdure.approvals.notifications import ApprovalNotification
from services.contracts.notifications import ApprovalNoticeReceipt, Notification, SendNotification
from services.data_plane.notifications.mail import Mail
from services.data_plane.notifications.tables import OPERATIONS, ApprovalNoticeRow, NotificationRow
from services.data_plane.tables import insert_if_missing
from services.database import Database


class Outbox:
    """Send notifications to travellers and approvers.

    Args:
        database: The database of Notifications.
        mail: Delivers notices to approvers by mail; None for no mail.
    """

    def __init__(self, database: Database, mail: Mail | None = None) -> None:
        self._database = database
        self._mail = mail

    async def notify(self, request: SendNotification) -> Notification:
        """Write a notification to a traveller into the outbox.

        Args:
            request: Trip, kind, recipient, text and key.

        Raises:
            Conflict: See `perdure.sql.IdempotencyTable.perform`.
        """

        async def put() -> Notification:
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

        async with self._database.transaction() as connection:
            return await OPERATIONS.perform(
                connection,
                request.key,
                put,
                action="notify",
                request=request,
                result=Notification,
                subject=request.trip_id,
            )

    async def tell_approver(self, notice: ApprovalNotification) -> ApprovalNoticeReceipt:
        """Deliver a notice to an approver, and record that. A notice that is recorded is not delivered again.

        A crash between mail and record sends the mail again, with the same Message-ID and the same link. No
        idempotency table is needed: there is no compensation, and the notice has a key.

        Args:
            notice: The notice.

        Raises:
            OSError: The mail server rejects it or is unreachable.
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

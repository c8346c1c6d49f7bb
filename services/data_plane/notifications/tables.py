"""Tables of Notifications."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Index, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from perdure.sql import IdempotencyTable
from services.data_plane.tables import Timestamped, new_metadata


class Base(DeclarativeBase):
    """Base of the tables in this service's database."""

    metadata = new_metadata()


OPERATIONS: Final = IdempotencyTable(Base.metadata)


class NotificationRow(Timestamped, Base):
    """A notification in the outbox. The audit reads the outcome of a trip from it."""

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
    """A delivered notice to an approver, without the link in the mail."""

    __tablename__ = "approval_notices"

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    approval_id: Mapped[str] = mapped_column(Text, index=True)
    kind: Mapped[str] = mapped_column(Text)
    recipient: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)

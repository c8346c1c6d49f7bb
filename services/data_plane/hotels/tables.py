"""Tables of Hotels."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from perdure.sql import IdempotencyTable
from services.data_plane.tables import Timestamped, new_metadata


class Base(DeclarativeBase):
    """Base of the tables in this service's database."""

    metadata = new_metadata()


OPERATIONS: Final = IdempotencyTable(Base.metadata)


class HotelRow(Base):
    """A hotel of the catalogue, with its faults.

    ``latency_ms`` delays reservations. ``fails_cancellations`` is the number of cancellations that will fail; -1 means
    all.
    """

    __tablename__ = "hotels"
    __table_args__ = (
        CheckConstraint("rooms_left >= 0 AND rooms_left <= rooms", name="rooms_left"),
        CheckConstraint("latency_ms >= 0", name="latency_ms"),
        CheckConstraint("fails_cancellations >= -1", name="fails_cancellations"),
    )

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    rooms: Mapped[int]
    rooms_left: Mapped[int]
    latency_ms: Mapped[int]
    fails_cancellations: Mapped[int]


class RoomReservationRow(Timestamped, Base):
    """A room reserved for a trip, or released."""

    __tablename__ = "room_reservations"
    __table_args__ = (
        CheckConstraint("status IN ('active', 'cancelled')", name="status"),
        CheckConstraint("nights > 0", name="nights"),
        Index("uq_room_reservations_key", "key", unique=True),
    )

    reservation_id: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text)
    trip_id: Mapped[str] = mapped_column(Text, index=True)
    hotel: Mapped[str] = mapped_column(Text, ForeignKey(HotelRow.name))
    nights: Mapped[int]
    status: Mapped[str] = mapped_column(Text, default="active")

"""Tables of Flights."""

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


class FlightRow(Base):
    """A flight of the catalogue."""

    __tablename__ = "flights"
    __table_args__ = (CheckConstraint("seats_left >= 0 AND seats_left <= seats", name="seats_left"),)

    number: Mapped[str] = mapped_column(Text, primary_key=True)
    seats: Mapped[int]
    seats_left: Mapped[int]


class SeatReservationRow(Timestamped, Base):
    """Seats reserved for a trip, or released."""

    __tablename__ = "seat_reservations"
    __table_args__ = (
        CheckConstraint("status IN ('active', 'cancelled')", name="status"),
        CheckConstraint("seats > 0", name="seats"),
        Index("uq_seat_reservations_key", "key", unique=True),
    )

    reservation_id: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text)
    trip_id: Mapped[str] = mapped_column(Text, index=True)
    flight: Mapped[str] = mapped_column(Text, ForeignKey(FlightRow.number))
    seats: Mapped[int]
    status: Mapped[str] = mapped_column(Text, default="active")

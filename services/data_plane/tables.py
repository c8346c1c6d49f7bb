"""All tables of the data plane. Importing this module completes the metadata."""

from __future__ import annotations

from services.data_plane.database import Base
from services.data_plane.flights.tables import FlightRow, SeatReservationRow
from services.data_plane.hotels.tables import HotelRow, RoomReservationRow
from services.data_plane.idempotency import OperationRow
from services.data_plane.notifications.tables import ApprovalNoticeRow, NotificationRow
from services.data_plane.payments.tables import AccountRow, ChargeRow, LedgerTransactionRow, PostingRow

__all__ = [
    "AccountRow",
    "ApprovalNoticeRow",
    "Base",
    "ChargeRow",
    "FlightRow",
    "HotelRow",
    "LedgerTransactionRow",
    "NotificationRow",
    "OperationRow",
    "PostingRow",
    "RoomReservationRow",
    "SeatReservationRow",
]

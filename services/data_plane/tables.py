"""Every table of the data plane: importing this module makes the metadata complete."""

from __future__ import annotations

from services.data_plane.barrier import OperationRow
from services.data_plane.database import Base
from services.data_plane.flights.model import FlightRow, SeatReservationRow
from services.data_plane.hotels.model import HotelRow, RoomReservationRow
from services.data_plane.notifications.model import ApprovalNoticeRow, NotificationRow
from services.data_plane.payments.model import AccountRow, ChargeRow, LedgerTransactionRow, PostingRow

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

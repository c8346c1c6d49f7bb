"""Contract of Hotels: reserve and cancel a room."""

from __future__ import annotations

from typing import Literal

from perdure import Target
from services.contracts.messages import CompensationRequest, Message, Name, NightCount, OperationKey, TripId, Write


class HotelRequest(Message):
    """A room to book.

    Args:
        name: Name of the hotel, for example ``Harbour``.
        nights: Number of nights.
    """

    name: Name
    nights: NightCount


class ReserveRoom(Write):
    """Reserve one room for a trip."""

    hotel: HotelRequest


class RoomReservation(Message):
    """Reserved room of a trip."""

    reservation_id: str
    trip_id: TripId
    hotel: HotelRequest


class CancelRoom(CompensationRequest):
    """Cancel the reservation under a key."""


class RoomCancellation(Message):
    """Result of a cancellation.

    Args:
        key: The key of the reservation.
        outcome: ``cancelled`` if the room was released, ``voided`` if nothing was reserved under the key.
        reservation_id: The cancelled reservation; None if voided.
    """

    key: OperationKey
    outcome: Literal["cancelled", "voided"]
    reservation_id: str | None = None


reserve = Target("Hotels", "reserve", ReserveRoom, RoomReservation)
cancel = Target("Hotels", "cancel", CancelRoom, RoomCancellation)

"""Hotels: a room is reserved, and given back."""

from __future__ import annotations

from typing import Literal

from perdure import Target
from services.contracts.messages import CompensationRequest, Message, Name, NightCount, OperationKey, TripId, Write


class HotelRequest(Message):
    """The room that a traveller wants.

    Args:
        name: The hotel's name, for example ``Harbour``.
        nights: How many nights.
    """

    name: Name
    nights: NightCount


class ReserveRoom(Write):
    """Reserve one room for a trip."""

    hotel: HotelRequest


class RoomReservation(Message):
    """A room that is held for a trip."""

    reservation_id: str
    trip_id: TripId
    hotel: HotelRequest


class CancelRoom(CompensationRequest):
    """Give the room back that was reserved under this key."""


class RoomCancellation(Message):
    """What a cancellation found.

    Args:
        key: The key of the reservation.
        outcome: ``cancelled``: the room is free again. ``voided``: nothing was reserved, and nothing can be any more.
        reservation_id: The cancelled reservation, None for a voided one.
    """

    key: OperationKey
    outcome: Literal["cancelled", "voided"]
    reservation_id: str | None = None


reserve = Target("Hotels", "reserve", ReserveRoom, RoomReservation)
cancel = Target("Hotels", "cancel", CancelRoom, RoomCancellation)

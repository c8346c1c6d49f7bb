"""Flights: seats are reserved, and given back."""

from __future__ import annotations

from typing import Literal

from perdure import Target
from services.contracts.messages import CompensationRequest, Message, Name, OperationKey, SeatCount, TripId, Write


class FlightRequest(Message):
    """The flight that a traveller wants.

    Args:
        number: Flight number, for example ``PD100``.
        seats: How many seats.
    """

    number: Name
    seats: SeatCount


class ReserveSeats(Write):
    """Reserve seats for a trip."""

    flight: FlightRequest


class SeatReservation(Message):
    """Seats that are held for a trip."""

    reservation_id: str
    trip_id: TripId
    flight: FlightRequest


class CancelSeats(CompensationRequest):
    """Give the seats back that were reserved under this key."""


class SeatCancellation(Message):
    """What a cancellation found.

    Args:
        key: The key of the reservation.
        outcome: ``cancelled``: the seats are free again. ``voided``: nothing was reserved, and nothing can be any more.
        reservation_id: The cancelled reservation, None for a voided one.
    """

    key: OperationKey
    outcome: Literal["cancelled", "voided"]
    reservation_id: str | None = None


reserve = Target("Flights", "reserve", ReserveSeats, SeatReservation)
cancel = Target("Flights", "cancel", CancelSeats, SeatCancellation)

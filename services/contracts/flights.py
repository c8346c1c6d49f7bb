"""Contract of Flights: reserve and cancel seats."""

from __future__ import annotations

from typing import Literal

from perdure import Target
from services.contracts.messages import CompensationRequest, Message, Name, OperationKey, SeatCount, TripId, Write


class FlightRequest(Message):
    """A flight to book.

    Args:
        number: Flight number, for example ``PD100``.
        seats: Number of seats.
    """

    number: Name
    seats: SeatCount


class ReserveSeats(Write):
    """Reserve seats for a trip."""

    flight: FlightRequest


class SeatReservation(Message):
    """Reserved seats of a trip."""

    reservation_id: str
    trip_id: TripId
    flight: FlightRequest


class CancelSeats(CompensationRequest):
    """Cancel the reservation under a key."""


class SeatCancellation(Message):
    """Result of a cancellation.

    Args:
        key: The key of the reservation.
        outcome: ``cancelled`` if the seats were released, ``voided`` if nothing was reserved under the key.
        reservation_id: The cancelled reservation; None if voided.
    """

    key: OperationKey
    outcome: Literal["cancelled", "voided"]
    reservation_id: str | None = None


reserve = Target("Flights", "reserve", ReserveSeats, SeatReservation)
cancel = Target("Flights", "cancel", CancelSeats, SeatCancellation)

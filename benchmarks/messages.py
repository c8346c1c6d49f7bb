"""Messages and actions of the benchmark's saga, a trip with three bookings."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

from perdure.errors import TerminalError

STEPS: Final = ("flight", "hotel", "payment")
"""The steps of the saga, in order."""


class Trip(BaseModel):
    """An order.

    Args:
        traveller: The traveller.
        refused_at: Name of the step that fails; empty for none.
    """

    model_config = ConfigDict(extra="forbid")

    traveller: str
    refused_at: str = ""


class Booking(BaseModel):
    """Request of a step and of its compensation.

    Args:
        trip: The trip's ID.
        step: Name of the step.
        traveller: The traveller.
        refused: The step fails.
    """

    model_config = ConfigDict(extra="forbid")

    trip: str
    step: str
    traveller: str
    refused: bool = False


class Booked(BaseModel):
    """Response of a step.

    Args:
        trip: The trip's ID.
        reference: Reference of the booking.
    """

    trip: str
    reference: str


class Confirmation(BaseModel):
    """Result of the saga, equal for all trips of a traveller so that responses can be compared.

    Args:
        references: References of the bookings.
    """

    references: list[str]


def booking_for(trip: Trip, trip_id: str, step: str) -> Booking:
    """Return the request of a step.

    Args:
        trip: The order.
        trip_id: The trip's ID.
        step: The step.
    """
    return Booking(trip=trip_id, step=step, traveller=trip.traveller, refused=trip.refused_at == step)


async def book(booking: Booking) -> Booked:
    """Run the side effect of a step, which takes no time.

    Args:
        booking: The booking.

    Raises:
        TerminalError: The step fails; 409.
    """
    if booking.refused:
        raise TerminalError(f"the {booking.step} is refused", 409)
    return Booked(trip=booking.trip, reference=f"{booking.step} for {booking.traveller}")


async def cancel(booking: Booking) -> None:
    """Compensate a step, which does nothing.

    Args:
        booking: The booking.
    """

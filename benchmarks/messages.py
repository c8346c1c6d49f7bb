"""The business of the benchmark: a trip of three bookings. Both ways of doing it use these messages and this work."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

from perdure.errors import TerminalError

STEPS: Final = ("flight", "hotel", "payment")
"""The steps of the saga, in order."""


class Trip(BaseModel):
    """What is ordered.

    Args:
        traveller: For whom.
        refused_at: The step that is refused; none when empty.
    """

    model_config = ConfigDict(extra="forbid")

    traveller: str
    refused_at: str = ""


class Booking(BaseModel):
    """What one step is asked to do, and its compensation to undo.

    Args:
        trip: The trip's id.
        step: Which of its steps.
        traveller: For whom.
        refused: Whether it is refused.
    """

    model_config = ConfigDict(extra="forbid")

    trip: str
    step: str
    traveller: str
    refused: bool = False


class Booked(BaseModel):
    """What one step did.

    Args:
        trip: The trip's id.
        reference: What was booked, and for whom.
    """

    trip: str
    reference: str


class Confirmation(BaseModel):
    """The trip's result: the same for all trips of one traveller, so that answers can be compared.

    Args:
        references: What was booked, step by step.
    """

    references: list[str]


def booking_for(trip: Trip, trip_id: str, step: str) -> Booking:
    """Return what a step of a trip is asked to do.

    Args:
        trip: The order.
        trip_id: The trip's id.
        step: The step.
    """
    return Booking(trip=trip_id, step=step, traveller=trip.traveller, refused=trip.refused_at == step)


async def book(booking: Booking) -> Booked:
    """Do a step's side effect: nothing that takes time, since it isn't what is measured.

    Args:
        booking: What to book.

    Raises:
        TerminalError: It is refused; 409.
    """
    if booking.refused:
        raise TerminalError(f"the {booking.step} is refused", 409)
    return Booked(trip=booking.trip, reference=f"{booking.step} for {booking.traveller}")


async def cancel(booking: Booking) -> None:
    """Undo a step's side effect, which leaves nothing to do.

    Args:
        booking: What may have been booked.
    """

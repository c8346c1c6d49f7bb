"""The airline and the hotel of both sagas."""

from __future__ import annotations

import threading

from pydantic import BaseModel

from perdure.errors import Refused


class Booking(BaseModel):
    """A booking, also the payload of its compensation.

    Args:
        trip: The trip.
        name: The flight or hotel.
    """

    trip: str
    name: str


class BookingRequest(BaseModel):
    """A trip.

    Args:
        flight: The flight.
        hotel: The hotel.
    """

    flight: str
    hotel: str


class Desk:
    """Books and cancels idempotently, including cancellations of unknown bookings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, list[str]] = {}
        self.cancelled: dict[str, list[str]] = {}

    def book(self, booking: Booking) -> str:
        """Book and return the reservation's number. A repeated booking returns the same reservation."""
        with self._lock:
            if booking.name == "Overbooked":
                raise Refused(f"{booking.name} is full", 409, "full")
            held = self._held.setdefault(booking.trip, [])
            if booking.name not in held:
                held.append(booking.name)
            return f"R-{booking.name}"

    def cancel(self, booking: Booking) -> None:
        """Cancel a booking."""
        with self._lock:
            self.cancelled.setdefault(booking.trip, []).append(booking.name)
            if booking.name in self._held.get(booking.trip, []):
                self._held[booking.trip].remove(booking.name)

    def held_by(self, trip: str) -> list[str]:
        """Return the bookings of a trip."""
        with self._lock:
            return list(self._held.get(trip, []))


desk = Desk()

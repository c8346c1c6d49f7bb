"""The airline and the hotel, in which both sagas book."""

from __future__ import annotations

import threading

from pydantic import BaseModel

from perdure.errors import Refused


class Booking(BaseModel):
    """What is booked, and undone by the same facts.

    Args:
        trip: For which trip.
        name: The flight, or the hotel.
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
    """Takes bookings and gives them back. Giving back what was never taken, or twice, is fine: it may happen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, list[str]] = {}
        self.cancelled: dict[str, list[str]] = {}

    def book(self, booking: Booking) -> str:
        """Book; return the reservation's number. The same booking again is the same reservation."""
        with self._lock:
            if booking.name == "Overbooked":
                raise Refused(f"{booking.name} is full", 409, "full")
            held = self._held.setdefault(booking.trip, [])
            if booking.name not in held:
                held.append(booking.name)
            return f"R-{booking.name}"

    def cancel(self, booking: Booking) -> None:
        """Give it back."""
        with self._lock:
            self.cancelled.setdefault(booking.trip, []).append(booking.name)
            if booking.name in self._held.get(booking.trip, []):
                self._held[booking.trip].remove(booking.name)

    def held_by(self, trip: str) -> list[str]:
        """Return what a trip holds."""
        with self._lock:
            return list(self._held.get(trip, []))


desk = Desk()

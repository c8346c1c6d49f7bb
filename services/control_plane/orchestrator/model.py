"""What a trip asks of the data plane: the messages of each step and of its undoing, pure of any engine."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.idempotency import join_key
from services.contracts.flights import CancelSeats, ReserveSeats
from services.contracts.hotels import CancelRoom, ReserveRoom
from services.contracts.notifications import SendNotification
from services.contracts.payments import ChargeAccount, RefundCharge
from services.contracts.trips import TripRequest


@dataclass(frozen=True)
class TripPlan:
    """The messages of one trip.

    Each write's key is made of the trip's id, so whoever retries it, whenever, it acts once.

    Args:
        trip_id: The trip.
        request: What the traveller ordered.
    """

    trip_id: str
    request: TripRequest

    def _key(self, step: str) -> str:
        return join_key("trip", self.trip_id, step)

    @property
    def reserve_seats(self) -> ReserveSeats:
        """Hold the seats."""
        return ReserveSeats(key=self._key("flight"), trip_id=self.trip_id, flight=self.request.flight)

    @property
    def cancel_seats(self) -> CancelSeats:
        """Give the seats back."""
        return CancelSeats(key=self._key("flight"), trip_id=self.trip_id)

    @property
    def reserve_room(self) -> ReserveRoom:
        """Hold the room."""
        return ReserveRoom(key=self._key("hotel"), trip_id=self.trip_id, hotel=self.request.hotel)

    @property
    def cancel_room(self) -> CancelRoom:
        """Give the room back."""
        return CancelRoom(key=self._key("hotel"), trip_id=self.trip_id)

    @property
    def charge(self) -> ChargeAccount:
        """Take the money."""
        return ChargeAccount(key=self._key("payment"), trip_id=self.trip_id, payment=self.request.payment)

    @property
    def refund(self) -> RefundCharge:
        """Give the money back."""
        return RefundCharge(key=self._key("payment"), trip_id=self.trip_id)

    @property
    def tell_confirmed(self) -> SendNotification:
        """Tell the traveller that the trip is booked."""
        request = self.request
        return SendNotification(
            key=self._key("confirmed"),
            trip_id=self.trip_id,
            kind="trip-confirmed",
            recipient=request.traveller,
            text=f"Your trip {self.trip_id} is booked: flight {request.flight.number}, {request.flight.seats} seat(s); "
            f"{request.hotel.name}, {request.hotel.nights} night(s).",
        )

    @property
    def tell_refused(self) -> SendNotification:
        """Tell the traveller that the trip is not booked, and that nothing of it is held."""
        return SendNotification(
            key=self._key("refused"),
            trip_id=self.trip_id,
            kind="trip-refused",
            recipient=self.request.traveller,
            text=f"Your trip {self.trip_id} could not be booked. Nothing is reserved and nothing is charged.",
        )

    def needs_approval(self, limit_minor: int) -> bool:
        """Tell if the trip costs more than may be spent without asking.

        Args:
            limit_minor: The limit in minor units.
        """
        return self.request.payment.amount_minor > limit_minor

    def approval_title(self) -> str:
        """Return what the approver is asked."""
        request = self.request
        amount = f"{request.payment.amount_minor / 100:.2f} {request.payment.currency}"
        return f"Trip of {request.traveller} for {amount}: {request.flight.number}, {request.hotel.name}"

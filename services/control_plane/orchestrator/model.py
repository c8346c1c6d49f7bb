"""Messages of a trip to the data plane: steps and compensations."""

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
    """Messages of one trip. The trip id determines the idempotency key of each write.

    Args:
        trip_id: Trip id.
        request: The order.
    """

    trip_id: str
    request: TripRequest

    def _key(self, step: str) -> str:
        return join_key("trip", self.trip_id, step)

    @property
    def reserve_seats(self) -> ReserveSeats:
        """Request to reserve the seats."""
        return ReserveSeats(key=self._key("flight"), trip_id=self.trip_id, flight=self.request.flight)

    @property
    def cancel_seats(self) -> CancelSeats:
        """Request to cancel the seats."""
        return CancelSeats(key=self._key("flight"), trip_id=self.trip_id)

    @property
    def reserve_room(self) -> ReserveRoom:
        """Request to reserve the room."""
        return ReserveRoom(key=self._key("hotel"), trip_id=self.trip_id, hotel=self.request.hotel)

    @property
    def cancel_room(self) -> CancelRoom:
        """Request to cancel the room."""
        return CancelRoom(key=self._key("hotel"), trip_id=self.trip_id)

    @property
    def charge(self) -> ChargeAccount:
        """Request to charge the account."""
        return ChargeAccount(key=self._key("payment"), trip_id=self.trip_id, payment=self.request.payment)

    @property
    def refund(self) -> RefundCharge:
        """Request to refund the charge."""
        return RefundCharge(key=self._key("payment"), trip_id=self.trip_id)

    @property
    def notify_confirmed(self) -> SendNotification:
        """Notification that the trip is booked."""
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
    def notify_refused(self) -> SendNotification:
        """Notification that the trip could not be booked."""
        return SendNotification(
            key=self._key("refused"),
            trip_id=self.trip_id,
            kind="trip-refused",
            recipient=self.request.traveller,
            text=f"Your trip {self.trip_id} could not be booked. Nothing is reserved and nothing is charged.",
        )

    def needs_approval(self, limit_minor: int) -> bool:
        """Return whether the price exceeds the approval limit in minor units."""
        return self.request.payment.amount_minor > limit_minor

    def approval_title(self) -> str:
        """Return the title of the approval."""
        request = self.request
        amount = f"{request.payment.amount_minor / 100:.2f} {request.payment.currency}"
        return f"Trip of {request.traveller} for {amount}: {request.flight.number}, {request.hotel.name}"

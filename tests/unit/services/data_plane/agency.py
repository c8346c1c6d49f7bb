"""The business logic of all four data-plane services on their databases, without engine or saga."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from services.contracts.flights import CancelSeats, FlightRequest, ReserveSeats, SeatCancellation, SeatReservation
from services.contracts.hotels import CancelRoom, HotelRequest, ReserveRoom, RoomCancellation, RoomReservation
from services.contracts.notifications import Notification, NotificationKind, SendNotification
from services.contracts.payments import Charge, ChargeAccount, PaymentRequest, Refund, RefundCharge
from services.data_plane.flights.model import Seats
from services.data_plane.hotels.model import Rooms
from services.data_plane.notifications.model import Outbox
from services.data_plane.payments.model import Payments
from services.database import Database


class Agency:
    """Client of the business logic; each method performs one write of a trip with its idempotency key."""

    def __init__(self, databases: Mapping[str, Database]) -> None:
        self.databases = databases

    @cached_property
    def seats(self) -> Seats:
        return Seats(self.databases["flights"])

    @cached_property
    def rooms(self) -> Rooms:
        return Rooms(self.databases["hotels"])

    @cached_property
    def payments(self) -> Payments:
        return Payments(self.databases["payments"])

    @cached_property
    def outbox(self) -> Outbox:
        return Outbox(self.databases["notifications"])

    async def reserve_seats(self, trip: str, number: str = "PD100", seats: int = 1) -> SeatReservation:
        flight = FlightRequest(number=number, seats=seats)
        return await self.seats.reserve(ReserveSeats(key=f"trip:{trip}:flight", trip_id=trip, flight=flight))

    async def cancel_seats(self, trip: str) -> SeatCancellation:
        return await self.seats.cancel(CancelSeats(key=f"trip:{trip}:flight", trip_id=trip))

    async def reserve_room(self, trip: str, name: str = "Harbour", nights: int = 2) -> RoomReservation:
        hotel = HotelRequest(name=name, nights=nights)
        return await self.rooms.reserve(ReserveRoom(key=f"trip:{trip}:hotel", trip_id=trip, hotel=hotel))

    async def cancel_room(self, trip: str) -> RoomCancellation:
        return await self.rooms.cancel(CancelRoom(key=f"trip:{trip}:hotel", trip_id=trip))

    async def charge(
        self, trip: str, account: str = "acct-ada", amount_minor: int = 50_000, currency: str = "EUR"
    ) -> Charge:
        payment = PaymentRequest(account=account, amount_minor=amount_minor, currency=currency)
        return await self.payments.charge(ChargeAccount(key=f"trip:{trip}:payment", trip_id=trip, payment=payment))

    async def refund(self, trip: str) -> Refund:
        return await self.payments.refund(RefundCharge(key=f"trip:{trip}:payment", trip_id=trip))

    async def notify(self, trip: str, kind: NotificationKind) -> Notification:
        return await self.outbox.notify(
            SendNotification(
                key=f"trip:{trip}:{kind}", trip_id=trip, kind=kind, recipient="ada@example.com", text=f"Your {kind}"
            )
        )

    async def book(self, trip: str) -> None:
        """Perform all writes of a confirmed trip."""
        await self.reserve_seats(trip)
        await self.reserve_room(trip)
        await self.charge(trip)
        await self.notify(trip, "trip-confirmed")

    async def refuse(self, trip: str) -> None:
        """Perform all writes of a trip, then all compensations."""
        await self.reserve_seats(trip)
        await self.reserve_room(trip)
        await self.charge(trip)
        await self.refund(trip)
        await self.cancel_room(trip)
        await self.cancel_seats(trip)
        await self.notify(trip, "trip-refused")

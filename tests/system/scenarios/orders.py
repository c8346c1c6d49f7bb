"""Orders of scenarios and chaos tests."""

from __future__ import annotations

from services.contracts.flights import FlightRequest
from services.contracts.hotels import HotelRequest
from services.contracts.payments import PaymentRequest
from services.contracts.trips import TripRequest
from services.runtime.booking import ORDINARY


def order(
    *,
    flight: str = ORDINARY.flight.number,
    seats: int = 1,
    hotel: str = ORDINARY.hotel.name,
    account: str = ORDINARY.payment.account,
    amount_minor: int = ORDINARY.payment.amount_minor,
) -> TripRequest:
    """Return the ordinary order with some fields replaced.

    Args:
        flight: Flight number.
        seats: Number of seats.
        hotel: Hotel.
        account: Account to charge.
        amount_minor: Price in minor units.
    """
    return TripRequest(
        traveller=ORDINARY.traveller,
        flight=FlightRequest(number=flight, seats=seats),
        hotel=HotelRequest(name=hotel, nights=ORDINARY.hotel.nights),
        payment=PaymentRequest(account=account, amount_minor=amount_minor, currency=ORDINARY.payment.currency),
    )

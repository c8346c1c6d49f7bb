"""Contract of Trips: book a trip."""

from __future__ import annotations

from typing import Literal

from perdure import KeyedTarget, StatusData
from services.contracts.flights import FlightRequest
from services.contracts.hotels import HotelRequest
from services.contracts.messages import Email, Message, TripId
from services.contracts.payments import PaymentRequest


class TripRequest(Message):
    """A trip to book: a flight, a hotel, and the money for both.

    Args:
        traveller: E-mail address of who travels.
        flight: Flight number and seats.
        hotel: Hotel and nights.
        payment: Account, amount and currency.
    """

    traveller: Email
    flight: FlightRequest
    hotel: HotelRequest
    payment: PaymentRequest


class TripConfirmation(Message):
    """A booked trip: it holds exactly one seat set, one room and one charge."""

    trip_id: TripId
    flight_reservation_id: str
    hotel_reservation_id: str
    payment_id: str
    status: Literal["confirmed"] = "confirmed"


book = KeyedTarget("Trips", "run", TripRequest, TripConfirmation)
status: KeyedTarget[None, StatusData] = KeyedTarget("Trips", "status", None, StatusData)

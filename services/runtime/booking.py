"""Booking one trip through the ingress, watching it, and saying how to book the next one."""

from __future__ import annotations

import asyncio
import json
import shlex
from datetime import timedelta
from typing import Final
from urllib.parse import quote
from uuid import uuid4

from perdure import IngressClient
from perdure.dev.terminal import ShowStatus
from services.contracts import trips
from services.contracts.flights import FlightRequest
from services.contracts.hotels import HotelRequest
from services.contracts.payments import PaymentRequest
from services.contracts.trips import TripConfirmation, TripRequest

_LOOK: Final = timedelta(milliseconds=50)

ORDINARY: Final = TripRequest(
    traveller="ada@example.com",
    flight=FlightRequest(number="PD100", seats=1),
    hotel=HotelRequest(name="Harbour", nights=2),
    payment=PaymentRequest(account="acct-ada", amount_minor=50_000, currency="EUR"),
)
"""A trip that can be booked any number of times."""


def new_trip_id() -> str:
    """Return an id that no trip had before."""
    return f"trip-{uuid4().hex[:12]}"


async def book(ingress: IngressClient, trip_id: str, order: TripRequest, show: ShowStatus) -> TripConfirmation:
    """Book a trip, and show how far it is until it's booked.

    Args:
        ingress: The engine.
        trip_id: The trip's id, a new one.
        order: The trip.
        show: Shows a status.

    Raises:
        IngressError: The trip was refused, or the ingress gave no answer.
    """
    await ingress.send(trips.book, order, key=trip_id)
    confirmation = asyncio.ensure_future(ingress.attach(trips.book, key=trip_id))
    try:
        while not confirmation.done():
            show(await ingress.call(trips.status, key=trip_id))
            await asyncio.wait({confirmation}, timeout=_LOOK.total_seconds())
        show(await ingress.call(trips.status, key=trip_id))
        return await confirmation
    finally:
        confirmation.cancel()


def curl(ingress_url: str, trip_id: str, order: TripRequest) -> str:
    """Return one line for a shell that books a trip and prints its confirmation.

    Args:
        ingress_url: The engine.
        trip_id: The trip's id, a new one.
        order: The trip.
    """
    body = json.dumps(order.model_dump(mode="json"), separators=(",", ":"))
    url = f"{ingress_url}/Trips/{quote(trip_id, safe='')}/run"
    return f"curl -sS {shlex.quote(url)} -H 'content-type: application/json' -d {shlex.quote(body)}"

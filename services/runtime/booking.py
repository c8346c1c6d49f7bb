"""Book a trip through the ingress and display its progress."""

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

_POLL: Final = timedelta(milliseconds=50)

ORDINARY: Final = TripRequest(
    traveller="ada@example.com",
    flight=FlightRequest(number="PD100", seats=1),
    hotel=HotelRequest(name="Harbour", nights=2),
    payment=PaymentRequest(account="acct-ada", amount_minor=50_000, currency="EUR"),
)
"""A trip that the seed data can serve any number of times."""


def new_trip_id() -> str:
    """Return a new trip id."""
    return f"trip-{uuid4().hex[:12]}"


async def book(ingress: IngressClient, trip_id: str, order: TripRequest, show: ShowStatus) -> TripConfirmation:
    """Book a trip and display its status until it ends.

    Args:
        ingress: Client of the ingress.
        trip_id: A new trip id.
        order: The trip.
        show: Displays a status.

    Raises:
        IngressError: The trip was refused, or the ingress did not answer.
    """
    await ingress.submit(trips.book, order, key=trip_id)
    confirmation = asyncio.ensure_future(ingress.attach(trips.book, key=trip_id))
    try:
        while not confirmation.done():
            show(await ingress.call(trips.status, key=trip_id))
            await asyncio.wait({confirmation}, timeout=_POLL.total_seconds())
        show(await ingress.call(trips.status, key=trip_id))
        return await confirmation
    finally:
        confirmation.cancel()


def curl(ingress_url: str, trip_id: str, order: TripRequest) -> str:
    """Return a curl command that books a trip and prints its confirmation.

    Args:
        ingress_url: Address of the ingress.
        trip_id: A new trip id.
        order: The trip.
    """
    body = json.dumps(order.model_dump(mode="json"), separators=(",", ":"))
    url = f"{ingress_url}/Trips/{quote(trip_id, safe='')}/run"
    return f"curl -sS {shlex.quote(url)} -H 'content-type: application/json' -d {shlex.quote(body)}"

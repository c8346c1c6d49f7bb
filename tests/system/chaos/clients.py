"""Clients of a chaos run: they order trips and wait for the answers, and the ledger records all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, Self

import httpx

from perdure import IngressClient
from perdure._runtime.http import http_client
from perdure.errors import Acceptance, IngressError
from services.contracts import trips
from services.contracts.trips import TripRequest
from tests.system.chaos.ledger import Answer, Ledger
from tests.system.chaos.plan import Client

_AGAIN: Final = 0.25
_REQUEST_TIMEOUT: Final = 10.0
_CONNECTIONS: Final = 256
# 404: an engine that has just started does not know the services for a moment.
_REPEATED: Final = (0, 404, 429, 500, 502, 503, 504)


class Clients:
    """Orders trips at one ingress. Open it with `at`.

    Args:
        ingress: Client of the ingress, which makes a single attempt per request.
        ledger: Receives every request and answer.
    """

    def __init__(self, ingress: IngressClient, ledger: Ledger) -> None:
        self._ingress = ingress
        self._ledger = ledger
        self.invocations: dict[str, str] = {}
        """Invocation ID of each accepted trip."""

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str, ledger: Ledger) -> AsyncIterator[Self]:
        """Open connections to an ingress.

        Args:
            url: Address of the ingress.
            ledger: See the class.
        """
        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        async with http_client(url, timeout=httpx.Timeout(_REQUEST_TIMEOUT), limits=limits) as http:
            yield cls(IngressClient(url, http=http, max_attempts=1, registration_timeout=timedelta(0)), ledger)

    async def order(self, trip: str, what: TripRequest, client: Client) -> None:
        """Order a trip and wait for the answer, however long it takes.

        Args:
            trip: The trip.
            what: The order.
            client: How the client behaves.

        Raises:
            IngressError: The ingress refused the order.
        """
        if await self._book(trip, what, client):
            await self._await_answer(trip)

    async def _book(self, trip: str, what: TripRequest, client: Client) -> bool:
        """Send an order until the engine accepts it; the trip ID makes the repetition safe."""
        while True:
            self._ledger.sent(trip, "submit")
            try:
                invocation = await self._ingress.submit(trips.book, what, key=trip)
            except IngressError as error:
                self._ledger.answered(trip, "submit", _judge_refusal(error), _text(error))
                if error.status_code not in _REPEATED:
                    raise
                if client == "impatient":
                    return False
                await asyncio.sleep(_AGAIN)
            else:
                self._ledger.accepted(trip, invocation)
                self.invocations[trip] = invocation
                return True

    async def _await_answer(self, trip: str) -> None:
        while True:
            self._ledger.sent(trip, "attach")
            try:
                confirmation = await self._ingress.attach(trips.book, key=trip)
            except IngressError as error:
                if error.source == "invocation":
                    self._ledger.answered(trip, "attach", "refused", _text(error))
                    return
                self._ledger.answered(trip, "attach", "unknown", _text(error))
                await asyncio.sleep(_AGAIN)
            else:
                self._ledger.confirmed(trip, confirmation)
                return


def _judge_refusal(error: IngressError) -> Answer:
    """Return what a failed submission says about the order."""
    return "not accepted" if error.acceptance is Acceptance.NOT_ACCEPTED else "unknown"


def _text(error: IngressError) -> str:
    return f"{error.status_code} {error.source}: {error.message}"

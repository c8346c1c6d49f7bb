"""Trips that are booked without a break, one client after the other, and what their travellers notice of a blow."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Self

from perdure import IngressClient
from perdure.errors import IngressError
from services.contracts import trips
from services.contracts.trips import TripRequest
from services.runtime.connections import local_http
from tests.system.scenarios.orders import order

_AGAIN: Final = 0.1
# 404: a node that has just come back does not know the services for a moment.
_UNANSWERED: Final = (0, 404, 429, 500, 502, 503, 504)
_PATIENCE: Final = 120  # seconds; a trip that no node takes for so long is a failure
_AT_ONCE: Final = 8


@dataclass
class Stream:
    """Trips that are under way all the time. Open one with `on`.

    A booker asks one ingress, and the next when it gets no answer; a repeated order is the same trip.

    Args:
        prefix: What its trips are called, before their numbers.
        ingresses: The addresses to ask.
        what: What is ordered.
    """

    prefix: str
    ingresses: Sequence[str]
    what: TripRequest = field(default_factory=order)

    def __post_init__(self) -> None:
        """Prepare; nothing is booked yet."""
        self._numbers = itertools.count(1)
        self._ending = False
        self.ends: list[float] = []
        """When each trip was confirmed, by the monotonic clock, in order."""

    @classmethod
    @asynccontextmanager
    async def on(cls, prefix: str, ingresses: Sequence[str], what: TripRequest | None = None) -> AsyncIterator[Self]:
        """Book trips as long as the context lasts; leaving it waits for those that are under way.

        Args:
            prefix: See the class.
            ingresses: See the class.
            what: See the class; the ordinary order by default.

        Yields:
            The stream.

        Raises:
            ExceptionGroup: A trip was refused, or not confirmed for two minutes.
        """
        stream = cls(prefix, ingresses, what or order())
        async with local_http() as http, asyncio.TaskGroup() as bookers:
            clients = [IngressClient(url, http=http) for url in ingresses]
            for first in range(_AT_ONCE):
                bookers.create_task(stream._book_on(clients[first % len(clients) :] + clients[: first % len(clients)]))
            try:
                yield stream
            finally:
                stream._ending = True

    @property
    def confirmed(self) -> int:
        """How many trips are confirmed."""
        return len(self.ends)

    async def flow(self, trips_more: int, within: float = 60) -> None:
        """Wait until so many more trips are confirmed.

        Args:
            trips_more: How many.
            within: How long to wait, in seconds.

        Raises:
            TimeoutError: They aren't in time.
        """
        wanted = self.confirmed + trips_more
        async with asyncio.timeout(within):
            while self.confirmed < wanted:  # noqa: ASYNC110 - nobody is to be told of each trip but who waits here
                await asyncio.sleep(0.02)

    def pause(self, since: float, until: float) -> float:
        """Return the longest time without a confirmed trip, in seconds.

        Args:
            since: From when on, by the monotonic clock.
            until: Till when.
        """
        inside = [end for end in self.ends if since < end < until]
        times = [since, *inside, until]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    async def _book_on(self, clients: Sequence[IngressClient]) -> None:
        while not self._ending:
            trip = f"{self.prefix}-{next(self._numbers):05d}"
            async with asyncio.timeout(_PATIENCE):
                for client in itertools.cycle(clients):
                    if await self._confirmed(client, trip):
                        break
            self.ends.append(time.monotonic())

    async def _confirmed(self, client: IngressClient, trip: str) -> bool:
        try:
            async with asyncio.timeout(10):
                await client.send(trips.book, self.what, key=trip)
                await client.attach(trips.book, key=trip)
        except TimeoutError:
            return False
        except IngressError as error:
            if error.source == "invocation" or error.status_code not in _UNANSWERED:
                raise
            await asyncio.sleep(_AGAIN)
            return False
        return True

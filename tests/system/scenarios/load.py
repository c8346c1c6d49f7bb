"""Continuous bookings, and the pauses that a fault causes in them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Self

from perdure import IngressClient
from perdure.errors import IngressError, NotRegistered
from services.contracts import trips
from services.contracts.trips import TripRequest
from services.runtime.connections import local_http
from tests.support import eventually
from tests.system.scenarios.orders import order

_AGAIN: Final = 0.1
# 404: a node that has just come back does not know the services for a moment.
_UNANSWERED: Final = (0, 404, 429, 500, 502, 503, 504)
_PATIENCE: Final = 120  # seconds until an unconfirmed trip counts as failed
_AT_ONCE: Final = 8


@dataclass
class Stream:
    """Continuous concurrent bookings. Open it with `on`.

    Each client repeats an order at the next ingress until it gets a response; the trip ID makes the repetition safe.

    Args:
        prefix: Prefix of the trip IDs, followed by a number.
        ingresses: Addresses of the ingresses.
        what: The order.
    """

    prefix: str
    ingresses: Sequence[str]
    what: TripRequest = field(default_factory=order)

    def __post_init__(self) -> None:
        """Set up the counters."""
        self._numbers = itertools.count(1)
        self._ending = False
        self.ends: list[float] = []
        """Monotonic times of the confirmations, in order."""

    @classmethod
    @asynccontextmanager
    async def on(cls, prefix: str, ingresses: Sequence[str], what: TripRequest | None = None) -> AsyncIterator[Self]:
        """Book trips inside the context; its end waits for running trips.

        Args:
            prefix: See the class.
            ingresses: See the class.
            what: See the class; the ordinary order by default.

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
        """Number of confirmed trips."""
        return len(self.ends)

    async def flow(self, trips_more: int, within: float = 60) -> None:
        """Wait until more trips are confirmed.

        Args:
            trips_more: Number of further trips.
            within: Time limit in seconds.

        Raises:
            WaitTimeout: The trips are not confirmed in time.
        """
        wanted = self.confirmed + trips_more
        await eventually(lambda: self.confirmed >= wanted, what=f"confirmation of {trips_more} trips", within=within)

    def pause(self, since: float, until: float) -> float:
        """Return the longest time in seconds without a confirmation.

        Args:
            since: Monotonic start time.
            until: Monotonic end time.
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
            is_final = error.source == "invocation" or error.status_code not in _UNANSWERED
            if is_final and not isinstance(error, NotRegistered):
                raise
            await asyncio.sleep(_AGAIN)
            return False
        return True

"""Polls an engine from a process: takes samples for gauges, then scans and acts, at an interval.

The process may die at any moment, so a scan leaves the work to a durable handler, which repeats the scan by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from structlog.stdlib import BoundLogger

from perdure._runtime.places import ValueCodec
from perdure.engine.admin import AdminClient
from perdure.engine.ingress import IngressClient
from perdure.errors import EngineError, IngressError
from perdure.observability.gauge_collector import GaugeCollector, Sample

_CALL_TIMEOUT: Final = timedelta(minutes=3)
_START_INTERVAL: Final = timedelta(seconds=1)
_FAILURES_AT_START: Final = 5
_DURATIONS: Final = 3

Sampler = Callable[[AdminClient, ValueCodec | None], Awaitable[Iterable[Sample]]]
Scan = Callable[[AdminClient, IngressClient], Awaitable[None]]


class Pace:
    """Limits repeated queries to a share of a core, whatever the number of rows that the engine reads for them.

    The shortest of the last durations counts, since other load on the machine delays a query and costs nothing. The
    first queries are not limited: those of a just-started engine are slow.

    Args:
        share: The share of one core.
        interval: Minimum time between two of them.
        free: Duration of the queries on an empty platform, which does not count.
    """

    def __init__(
        self, share: float, interval: timedelta = timedelta(0), free: timedelta = timedelta(milliseconds=20)
    ) -> None:
        self._free = free.total_seconds()
        self._share = share
        self._interval = interval.total_seconds()
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._end: float | None = None

    @property
    def duration(self) -> timedelta:
        """The time that the queries take; 0 until enough of them have been measured."""
        return timedelta(seconds=min(self._durations) if len(self._durations) == _DURATIONS else 0.0)

    @property
    def is_due(self) -> bool:
        """Whether the queries may run."""
        return self._is_due(self._share, self._interval)

    def is_due_for(self, share: float) -> bool:
        """Return whether the queries may run if there is work for them, which permits another share and no interval."""
        return self._is_due(share, 0.0)

    def _is_due(self, share: float, interval: float) -> bool:
        pause = max(interval, (self.duration.total_seconds() - self._free) / share)
        return self._end is None or time.monotonic() >= self._end + pause

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the queries in a block. If they fail, they may run again at once."""
        begin = time.monotonic()
        yield
        self._end = time.monotonic()
        self._durations.append(self._end - begin)


@dataclass(frozen=True)
class Poller:
    """Polls one engine: at once, and then at an interval.

    Until the first success it polls every second and logs nothing for five failures, since engine and services often
    start together. Later it logs the first failure (``{name}.blind``) and the next success (``{name}.sees_again``).

    Args:
        name: The prefix of its log events, such as ``reconciler``.
        log: The logger.
        admin_url: The engine's admin API.
        ingress_url: The engine's ingress.
        interval: Time between two scans.
        codec: Encryption of the services' journal; None if it is not encrypted.
        gauges: Receives the samples; has none while the engine does not answer.
        sample: Takes the samples.
        scan: Scans and acts.
    """

    name: str
    log: BoundLogger
    admin_url: str
    ingress_url: str
    interval: timedelta
    codec: ValueCodec | None
    gauges: GaugeCollector
    sample: Sampler
    scan: Scan

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Poll while the context is entered."""
        with self.gauges.published():
            task = asyncio.create_task(self._poll(), name=self.name)
            try:
                yield
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _poll(self) -> None:
        pause = min(self.interval, _START_INTERVAL)
        tolerated = _FAILURES_AT_START
        logged: str | None = None
        # Without retries: the next scan repeats the call if it is still needed.
        client = IngressClient(
            self.ingress_url,
            codec=self.codec,
            max_attempts=1,
            timeout=_CALL_TIMEOUT,
            registration_timeout=timedelta(0),
        )
        async with AdminClient(self.admin_url) as admin, client as ingress:
            while True:
                try:
                    await self._once(admin, ingress)
                except (EngineError, IngressError) as error:
                    tolerated -= 1
                    if logged is None and tolerated <= 0:
                        self.log.warning(f"{self.name}.blind", error=str(error), retry_in=pause.total_seconds())
                        logged = "blind"
                except Exception as error:
                    if logged != repr(error):
                        self.log.exception(f"{self.name}.broken")  # and continue: there is no other poller
                    logged = repr(error)
                else:
                    if logged is not None:
                        self.log.info(f"{self.name}.sees_again")
                    logged = None
                    tolerated = 0
                    pause = self.interval
                await asyncio.sleep(pause.total_seconds())

    async def _once(self, admin: AdminClient, ingress: IngressClient) -> None:
        try:
            samples = await self.sample(admin, self.codec)
        except Exception:
            self.gauges.clear()
            raise
        self.gauges.update(samples)
        await self.scan(admin, ingress)
        self.gauges.record_scan()

"""Watching an engine from a process: count, look, act on what is seen, and look again after a while.

What reconcilers are made of. A process can die at any moment, and so can a watch: what it does about what it sees is
asked of a durable handler, which looks again by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from structlog.stdlib import BoundLogger

from perdure._runtime.places import ValueCodec
from perdure.engine.admin import AdminClient
from perdure.engine.ingress import IngressClient
from perdure.errors import EngineError, IngressError
from perdure.observability.gauge_collector import GaugeCollector, Sample
from perdure.retry import RetryPolicy

__all__ = ["BACKGROUND_CALL_RETRIES", "Watch"]

BACKGROUND_CALL_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), max_interval=timedelta(seconds=10), max_attempts=20
).for_invocations("kill")
"""For handlers that a watch calls: tried for two minutes, so that a restart interrupts none, and then given up instead
of paused. One that is paused would hold up all that follow; one that is given up is called again at the next look."""

_ANSWERS_WITHIN: Final = timedelta(minutes=3)
_STARTING: Final = timedelta(seconds=1)
_MISSES_WHILE_STARTING: Final = 5

Count = Callable[[AdminClient, ValueCodec | None], Awaitable[Iterable[Sample]]]
Look = Callable[[AdminClient, IngressClient], Awaitable[None]]


@dataclass(frozen=True)
class Watch:
    """Looks at one engine: at once, and then at an interval.

    Until the first look has succeeded, it looks every second, and says nothing for five of them: engine and services
    often start together. After that it says once when it can't see (``….blind``) and once when it can again, however
    often it looks in between.

    Args:
        name: What its log lines begin with, such as ``reconciler``.
        log: Where they go.
        admin_url: The engine's admin API.
        ingress_url: The engine's ingress.
        interval: How long it waits between two looks.
        codec: What the services' journal is encrypted with; None when it is in clear.
        census: Is given what is counted; has no values while the engine can't be asked.
        count: Counts at each look.
        look: Looks, and acts on what it sees.
    """

    name: str
    log: BoundLogger
    admin_url: str
    ingress_url: str
    interval: timedelta
    codec: ValueCodec | None
    census: GaugeCollector
    count: Count
    look: Look

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look, as long as the context is entered."""
        with self.census.published():
            task = asyncio.create_task(self._watch(), name=self.name)
            try:
                yield
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _watch(self) -> None:
        pause = min(self.interval, _STARTING)
        patience = _MISSES_WHILE_STARTING
        said: str | None = None
        # Not sent again at once: the next look asks anew, if there still is need.
        client = IngressClient(self.ingress_url, codec=self.codec, max_attempts=1, timeout=_ANSWERS_WITHIN)
        async with AdminClient(self.admin_url) as admin, client as ingress:
            while True:
                try:
                    await self._once(admin, ingress)
                except (EngineError, IngressError) as error:
                    patience -= 1
                    if said is None and patience <= 0:
                        self.log.warning(f"{self.name}.blind", error=str(error), again_in=pause.total_seconds())
                        said = "blind"
                except Exception as error:
                    if said != repr(error):
                        self.log.exception(f"{self.name}.broken")  # and go on: nobody else looks
                    said = repr(error)
                else:
                    if said is not None:
                        self.log.info(f"{self.name}.sees_again")
                    said = None
                    patience = 0
                    pause = self.interval
                await asyncio.sleep(pause.total_seconds())

    async def _once(self, admin: AdminClient, ingress: IngressClient) -> None:
        try:
            counted = await self.count(admin, self.codec)
        except Exception:
            self.census.clear()
            raise
        self.census.update(counted)
        await self.look(admin, ingress)
        self.census.record_scan()

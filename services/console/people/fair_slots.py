"""Fair sharing of a few slots for expensive work."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from services.console.problems import ConsoleError

_RETRY_AFTER: Final = 1


class FairSlots:
    """Gives slots to waiting sources in turn, within one event loop.

    Each source has a short queue of its own. A flood from one source is refused at once, and delays a request of
    another source by the work in the slots and by one request of each waiting source. Known sources, such as a browser
    that signed in before, have a separate queue that is served first, so strangers don't delay them.

    Args:
        slots: How many work at the same time.
        waiting_per_source: How many requests of one source may wait.
        waiting: How many requests of strangers may wait in all, and how many of known sources.
    """

    def __init__(self, slots: int, *, waiting_per_source: int = 8, waiting: int = 64) -> None:
        self._free = slots
        self._waiting_per_source = waiting_per_source
        self._waiting = waiting
        self._known: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._strangers: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, source: str, *, known: bool = False) -> AsyncIterator[None]:
        """Hold a slot as long as the context lasts.

        Args:
            source: The source, for example an address, a device or a session.
            known: Whether it is a known source.

        Raises:
            ConsoleError: Too much of this source is waiting (429), or of all strangers (503).
        """
        await self._take(source, self._known if known else self._strangers)
        try:
            yield
        finally:
            self._give()

    async def _take(self, source: str, queues: OrderedDict[str, deque[asyncio.Future[None]]]) -> None:
        if self._free > 0:
            self._free -= 1
            return
        if len(queues.get(source, ())) >= self._waiting_per_source:
            raise ConsoleError(
                429, "too_many", "too many sign-ins of yours are waiting: try again", retry_after=_RETRY_AFTER
            )
        if sum(map(len, queues.values())) >= self._waiting:
            raise ConsoleError(
                503, "busy", "too many people are signing in at the moment: try again", retry_after=_RETRY_AFTER
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queues.setdefault(source, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(queues, source, turn)
            else:  # its turn had come
                self._give()
            raise

    def _give(self) -> None:
        for queues in (self._known, self._strangers):
            while queues:
                source, turns = queues.popitem(last=False)
                turn = turns.popleft()
                if turns:
                    queues[source] = turns  # at the end: the others come first
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1

    @staticmethod
    def _forget(queues: OrderedDict[str, deque[asyncio.Future[None]]], source: str, turn: asyncio.Future[None]) -> None:
        turns = queues.get(source)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del queues[source]

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

    Each source has its own short queue. A flood from one source is rejected at once, and delays other sources by one of
    its requests per turn. Known sources, such as a browser that has signed in before, have a separate queue that is
    served first.

    Args:
        slots: The number of concurrent slots.
        waiting_per_source: The maximal queue of one source.
        waiting: The maximal number of waiting requests of unknown sources, and of known sources.
    """

    def __init__(self, slots: int, *, waiting_per_source: int = 8, waiting: int = 64) -> None:
        self._free = slots
        self._waiting_per_source = waiting_per_source
        self._waiting = waiting
        self._known: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._unknown: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, source: str, *, known: bool = False) -> AsyncIterator[None]:
        """Hold a slot for the duration of the block.

        Raises:
            ConsoleError: The queue of the source (429), or of all unknown sources (503), is full.
        """
        await self._acquire(source, self._known if known else self._unknown)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, source: str, queues: OrderedDict[str, deque[asyncio.Future[None]]]) -> None:
        if self._free > 0:
            self._free -= 1
            return
        if len(queues.get(source, ())) >= self._waiting_per_source:
            raise ConsoleError(
                429, "too_many", "too many of your sign-ins are waiting; try again", retry_after=_RETRY_AFTER
            )
        if sum(map(len, queues.values())) >= self._waiting:
            raise ConsoleError(503, "busy", "too many sign-ins are waiting; try again", retry_after=_RETRY_AFTER)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queues.setdefault(source, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._remove(queues, source, turn)
            else:  # the slot was already assigned
                self._release()
            raise

    def _release(self) -> None:
        for queues in (self._known, self._unknown):
            while queues:
                source, turns = queues.popitem(last=False)
                turn = turns.popleft()
                if turns:
                    queues[source] = turns  # to the end, behind the other sources
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1

    @staticmethod
    def _remove(queues: OrderedDict[str, deque[asyncio.Future[None]]], source: str, turn: asyncio.Future[None]) -> None:
        turns = queues.get(source)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del queues[source]

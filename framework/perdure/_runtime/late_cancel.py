"""A cancel that the engine cannot deliver to the running attempt.

Over HTTP/1.1, and after the inactivity timeout over HTTP/2, the engine sends nothing more to an attempt. A cancel
would wait until the running action ends. A process that knows the engine's admin API asks it instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, ClassVar, Final

FindCancel = Callable[[str], Awaitable[bool]]
"""Returns whether an invocation is cancelled."""

find_cancel: ContextVar[FindCancel | None] = ContextVar("perdure_find_cancel", default=None)

INTERVAL: Final = 2.0  # seconds between two searches for one invocation
MAX_RATE: Final = 20.0  # searches per second of this process


class LateCancel:
    """The cancel of one invocation.

    Args:
        invocation_id: The invocation.
        may_search: Tells whether the attempt cannot receive a cancel at present.
    """

    _next_search: ClassVar[float] = 0.0

    def __init__(self, invocation_id: str, may_search: Callable[[], bool]) -> None:
        self.is_known = False
        """Whether the cancel was found."""
        self._invocation_id = invocation_id
        self._may_search = may_search

    async def until_found(self, ends: set[asyncio.Future[Any]]) -> None:
        """Wait until the cancel is found, or the first of the futures is done."""
        interval = None if find_cancel.get() is None else INTERVAL
        while not (await asyncio.wait(ends, timeout=interval, return_when=asyncio.FIRST_COMPLETED))[0]:
            if await self._search():
                return

    async def _search(self) -> bool:
        find, now = find_cancel.get(), time.monotonic()
        turn = max(now, LateCancel._next_search)
        if find is not None and self._may_search() and turn - now < INTERVAL:
            LateCancel._next_search = turn + 1 / MAX_RATE
            await asyncio.sleep(turn - now)
            self.is_known = await find(self._invocation_id)
        return self.is_known

"""How much one caller may ask for: so often, and so much at the same time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from services.console.problems import ConsoleError


class RateLimits:
    """The limits of each caller; kept in this process, since a console is one process.

    Args:
        rate: How often a caller may ask.
        at_once: How many of a caller's requests may be open at a time.
    """

    def __init__(self, rate: RateLimitItem, *, at_once: int) -> None:
        self._rate = rate
        self._at_once = at_once
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._open: Counter[str] = Counter()

    @asynccontextmanager
    async def taken(self, caller: str) -> AsyncIterator[None]:
        """Take one request of a caller's, which is open as long as the context lasts.

        Args:
            caller: Whose.

        Raises:
            ConsoleError: There were too many (429); it says when to come again.
        """
        if self._open[caller] >= self._at_once:
            raise ConsoleError(
                429, "too_many_open", f"{self._at_once} requests of yours are open already", retry_after=1
            )
        self._open[caller] += 1
        try:
            if not await self._limiter.hit(self._rate, caller):
                stats = await self._limiter.get_window_stats(self._rate, caller)
                wait = max(1, math.ceil(stats.reset_time - time.time()))
                raise ConsoleError(429, "too_many", f"at most {self._rate}: slow down", retry_after=wait)
            yield
        finally:
            self._open[caller] -= 1
            if self._open[caller] == 0:
                del self._open[caller]

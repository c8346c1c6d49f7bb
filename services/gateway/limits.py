"""Limits per caller: request rate and concurrent requests."""

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
    """Counts requests per caller in this process."""

    def __init__(self, rate: RateLimitItem, *, concurrency: int) -> None:
        self._rate = rate
        self._concurrency = concurrency
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._open: Counter[str] = Counter()

    @asynccontextmanager
    async def counted(self, caller: str) -> AsyncIterator[None]:
        """Count a request of a caller for the duration of the block.

        Raises:
            ConsoleError: The caller exceeds a limit (429).
        """
        if self._open[caller] >= self._concurrency:
            raise ConsoleError(
                429,
                "too_many_open",
                f"{self._concurrency} of your requests are open; wait for one to end",
                retry_after=1,
            )
        self._open[caller] += 1
        try:
            if not await self._limiter.hit(self._rate, caller):
                stats = await self._limiter.get_window_stats(self._rate, caller)
                wait = max(1, math.ceil(stats.reset_time - time.time()))
                raise ConsoleError(429, "too_many", f"rate limit exceeded: {self._rate}", retry_after=wait)
            yield
        finally:
            self._open[caller] -= 1
            if self._open[caller] == 0:
                del self._open[caller]

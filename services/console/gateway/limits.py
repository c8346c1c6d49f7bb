"""How much one caller may ask for: so often, and so much at the same time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from services.console.problems import ConsoleError

_MOST_CALLERS: Final = 10_000


@dataclass
class _Bucket:
    """What a caller has left. It fills up with time."""

    tokens: float
    at: float
    open: int = 0


class RateLimits:
    """Buckets of tokens, one for each caller; kept in this process, since a console is one process.

    Args:
        per_second: How many requests a caller may make a second, for long.
        burst: How many at once, after a pause.
        at_once: How many of a caller's requests may be open at a time.
        clock: A clock that never goes back, in seconds.
    """

    def __init__(
        self, *, per_second: float, burst: int, at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._at_once = at_once
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    @contextmanager
    def taken(self, caller: str) -> Iterator[None]:
        """Take one request of a caller's, which is open as long as the context lasts.

        Args:
            caller: Whose.

        Raises:
            ConsoleError: There were too many (429); it says when to come again.
        """
        bucket = self._bucket(caller)
        if bucket.open >= self._at_once:
            raise ConsoleError(
                429, "too_many_open", f"{self._at_once} requests of yours are open already", retry_after=1
            )
        if bucket.tokens < 1:
            wait = math.ceil((1 - bucket.tokens) / self._per_second)
            raise ConsoleError(
                429, "too_many", f"at most {self._per_second:g} requests a second: slow down", retry_after=wait
            )
        bucket.tokens -= 1
        bucket.open += 1
        try:
            yield
        finally:
            bucket.open -= 1

    def _bucket(self, caller: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(caller)
        if bucket is None:
            if len(self._buckets) >= _MOST_CALLERS:
                self._forget(now)
            bucket = self._buckets[caller] = _Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._per_second)
        bucket.at = now
        return bucket

    def _forget(self, now: float) -> None:
        """Forget callers whose bucket is full again: a new one would be the same."""
        full = self._burst / self._per_second
        self._buckets = {name: each for name, each in self._buckets.items() if each.open or now - each.at < full}

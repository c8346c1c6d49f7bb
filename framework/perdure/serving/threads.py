"""Threads of blocking functions: runs whose action is a plain function, and everything in ``asyncio.to_thread``.

A blocking function may wait for a handler of the same process, which needs a thread itself. If all threads wait, none
of them continues. By default there are as many threads as the engine runs invocations at once, so that does not happen;
``PERDURE_THREADS`` sets another limit. Threads are created on demand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import count
from threading import Lock
from typing import Any, Final
from weakref import WeakSet

from perdure.errors import ConfigurationError
from perdure.observability.instruments import GaugeMetric
from perdure.observability.logging import get_logger
from perdure.observability.metrics import THREADS_BUSY, THREADS_LIMIT, THREADS_WAITING

THREADS_SETTING: Final = "PERDURE_THREADS"
DEFAULT_THREADS: Final = 1_000
"""The engine's default of ``concurrent-invocations-limit``."""

LONGEST_WAIT: Final = 5.0
"""Seconds that a function may wait for a thread before the pool counts as used up."""

log = get_logger(__name__)

_pools: WeakSet[WatchedPool] = WeakSet()


def thread_limit(environment: Mapping[str, str]) -> int:
    """Return the maximum number of threads.

    Raises:
        ConfigurationError: The setting is not a positive number.
    """
    text = environment.get(THREADS_SETTING) or str(DEFAULT_THREADS)
    if not (text.isascii() and text.isdigit() and int(text[:9]) >= 1 and len(text) <= 9):
        raise ConfigurationError(f"{THREADS_SETTING}={text!r}: write a number of threads, 1 or more")
    return int(text)


class WatchedPool(ThreadPoolExecutor):
    """Thread pool that knows how long functions wait for a thread, and logs a warning if it is used up.

    Args:
        threads: The maximum number of threads.
        loop: The event loop that uses the pool.
    """

    def __init__(self, threads: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(threads, thread_name_prefix="perdure-blocking")
        self.limit = threads
        self._loop = loop
        self._lock = Lock()
        self._numbers = count()
        self._waiting: dict[int, float] = {}
        self._busy = 0
        self._watching = False
        self._warned = False
        _pools.add(self)

    @property
    def busy(self) -> int:
        """The number of functions that run."""
        return self._busy

    @property
    def waiting(self) -> int:
        """The number of functions that wait for a thread."""
        return len(self._waiting)

    def problem(self) -> str | None:
        """Return why the pool is used up, or None."""
        with self._lock:
            since = next(iter(self._waiting.values()), None)
        waited = 0.0 if since is None else time.monotonic() - since
        if waited < LONGEST_WAIT:
            return None
        return (
            f"all {self.limit} threads are busy, and {self.waiting} blocking functions wait for one, the first for "
            f"{waited:.0f} s"
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in a thread, as soon as one is free."""
        number = next(self._numbers)
        with self._lock:
            self._waiting[number] = time.monotonic()
            is_full = self._busy + len(self._waiting) > self.limit
        future = super().submit(self._run, number, fn, *args, **kwargs)
        future.add_done_callback(lambda _: self._forget(number))  # cancelled while it waited
        if is_full and not self._watching:
            self._watching = True
            self._loop.call_soon_threadsafe(self._watch_later)
        return future

    def _run(self, number: int, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self._waiting.pop(number, None)
            self._busy += 1
        try:
            return fn(*args, **kwargs)
        finally:
            with self._lock:
                self._busy -= 1

    def _forget(self, number: int) -> None:
        with self._lock:
            self._waiting.pop(number, None)

    def _watch_later(self) -> None:
        self._loop.call_later(LONGEST_WAIT, self._watch)

    def _watch(self) -> None:
        problem = self.problem()
        if problem is not None and not self._warned:
            self._warned = True
            log.warning(
                "threads used up: runs wait; raise PERDURE_THREADS, or make blocking functions asynchronous",
                reason=problem,
                threads=self.limit,
                waiting=self.waiting,
            )
        if problem is None and self._warned:
            self._warned = False
            log.info("threads are free again", threads=self.limit)
        self._watching = self.waiting > 0
        if self._watching:
            self._watch_later()


@cache
def observe_threads() -> None:
    """Publish the gauges of all pools of this process; further calls have no effect."""
    _publish(THREADS_LIMIT, lambda pool: pool.limit)
    _publish(THREADS_BUSY, lambda pool: pool.busy)
    _publish(THREADS_WAITING, lambda pool: pool.waiting)


def _publish(gauge: GaugeMetric, read: Callable[[WatchedPool], int]) -> None:
    gauge.observe_with(lambda: [(float(sum(map(read, list(_pools)))), {})])

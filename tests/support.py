"""Helpers shared by tests: a record of handler calls, waits for a condition, and a log reader."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Awaitable, Callable, Container
from typing import Any, TypeVar

from perdure.errors import PerdureError

T = TypeVar("T")

# Only a failing test reaches the limit of a wait, so it leaves room for a busy machine.
PATIENCE = 60.0

# A poll of the engine or the console takes 5 to 20 ms of CPU, which the awaited processes need.
_FIRST_POLL = 0.02
_LONGEST_POLL = 0.1
_POLL_SHARE = 0.2  # of the time waited so far


class WaitTimeout(PerdureError, AssertionError):
    """A condition did not come true in time. Tests fail; the commands of tests.system print it as one line."""


class Recording:
    """Thread-safe record of handler calls, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[str] = []

    def add(self, entry: str) -> None:
        with self._lock:
            self._entries.append(entry)

    def all(self) -> list[str]:
        with self._lock:
            return list(self._entries)

    def count(self, entry: str) -> int:
        return self.all().count(entry)

    def of(self, key: str) -> list[str]:
        """Return the entries ``verb key/rest`` of one key, as ``verb rest``."""
        return [entry.replace(f"{key}/", "") for entry in self.all() if f"{key}/" in entry]


async def eventually(
    probe: Callable[[], Awaitable[T | None] | T | None],
    *,
    what: str | Callable[[], str],
    within: float = PATIENCE,
    every: float | None = None,
) -> T:
    """Poll a probe until it returns a result.

    Args:
        probe: Returns the result or an awaitable of it; None and False mean "not yet". Its exceptions end the wait.
        what: Name of the result in the error message "there was no ..."; a function adds the last state.
        within: Time limit in seconds.
        every: Interval of the polls in seconds; by default it grows with the wait, from 20 to 100 ms.

    Returns:
        The first result other than None and False.

    Raises:
        WaitTimeout: The time limit passed.
    """
    start = time.monotonic()
    while True:
        result = probe()
        if isinstance(result, Awaitable):
            result = await result
        if result is not None and result is not False:
            return result
        waited = time.monotonic() - start
        if waited > within:
            raise WaitTimeout(f"within {within:g} s there was no {what if isinstance(what, str) else what()}")
        await asyncio.sleep(_pause(waited) if every is None else every)


def until(condition: Callable[[], object], what: str, within: float = PATIENCE) -> None:
    """Block until a condition is true.

    Args:
        condition: Returns whether the wait ends. Its exceptions end the wait, too.
        what: Name of the condition in the error message "there was no ...".
        within: Time limit in seconds.

    Raises:
        WaitTimeout: The time limit passed.
    """
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        if waited > within:
            raise WaitTimeout(f"within {within:g} s there was no {what}")
        time.sleep(_pause(waited))


def _pause(waited: float) -> float:
    """Return the time in seconds until the next poll."""
    return min(_LONGEST_POLL, max(_FIRST_POLL, _POLL_SHARE * waited))


async def until_sqlite_threads_end(besides: Container[threading.Thread] = ()) -> None:
    """Wait for the threads of failed SQLite connections: aiosqlite does not, and they still use the event loop.

    Args:
        besides: Threads that existed before the connections.
    """
    await eventually(
        lambda: (
            not any(
                "_connection_worker_thread" in thread.name for thread in threading.enumerate() if thread not in besides
            )
        ),
        what="end of aiosqlite's threads",
    )


def lines(log: io.StringIO, **facts: Any) -> list[dict[str, Any]]:
    """Return the lines of a JSON log that contain all given fields."""
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in found if facts.items() <= line.items()]

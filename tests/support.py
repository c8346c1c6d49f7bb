"""What tests share: a record of what handlers did, waiting on conditions, and reading a log."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

# A limit of a wait only ends a test that fails anyway, so it is long enough for a machine that does other work.
PATIENCE = 60.0


class Recording:
    """What handlers did, in order; written from other threads."""

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


async def eventually(probe: Callable[[], Awaitable[T | None] | T | None], *, what: str, within: float = PATIENCE) -> T:
    """Ask until the answer is true; fail with a sentence when time is over.

    Args:
        probe: Returns the answer, or an awaitable of it.
        what: What is waited for, as in "there was no ...".
        within: How many seconds it may take.

    Returns:
        The answer: the first one that is neither None nor False.
    """
    deadline = time.monotonic() + within
    while True:
        answer = probe()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"within {within} s there was no {what}; the last answer was {answer!r}")
        await asyncio.sleep(0.02)


def until(condition: Callable[[], object], what: str, within: float = PATIENCE) -> None:
    """Block until a condition holds; fail with a sentence when time is over.

    Args:
        condition: What has to be true. An assertion of its own ends the wait at once.
        what: What is waited for, as in "there was no ...".
        within: How many seconds it may take.
    """
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"within {within} s there was no {what}"
        time.sleep(0.02)


def lines(log: io.StringIO, **facts: Any) -> list[dict[str, Any]]:
    """Return the lines of a log in JSON that say all of this."""
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in found if facts.items() <= line.items()]

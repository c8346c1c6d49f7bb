"""Identity of executions within this process.

A workflow key, or an idempotency key, that is reused after its retention has the same invocation ID. Memory of an
invocation between its attempts must not be that of an earlier execution, so it is keyed by `sdk.execution_of`.

The first message of an attempt shows a new execution: the journal has only the input and there was no attempt before,
or the journal is shorter than that of an earlier attempt. If another process has handled all such attempts of the new
execution, this one takes it for the earlier one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from perdure._runtime.engine_retries import EngineRetries

T = TypeVar("T")


class RecentMap(Generic[T]):
    """Map of at least the last ``size`` keys, which evicts the older half as a whole."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._young: dict[str, T] = {}
        self._old: dict[str, T] = {}

    def get(self, key: str) -> T | None:
        """Return the value of a key, or None."""
        value = self._young.get(key)
        return self._old.get(key) if value is None else value

    def put(self, key: str, value: T) -> None:
        """Set the value of a key."""
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value


@dataclass(frozen=True)
class _Seen:
    """The execution of the last attempt of an invocation, and the largest number of its journal entries."""

    execution: str
    entries: int


_seen: Final[RecentMap[_Seen]] = RecentMap()
_numbers: Final = itertools.count(1)


def identify(invocation_id: str, start: EngineRetries | None) -> str:
    """Return the ID of the execution that an attempt belongs to.

    Args:
        invocation_id: The invocation.
        start: The start of the attempt; None if it is unknown, and then all attempts belong to one execution.
    """
    if start is not None and start.execution is not None:
        return start.execution
    seen = _seen.get(invocation_id)
    entries = 0 if start is None else start.entries
    is_first = start is not None and start.entries == 1 and start.count == 0
    if seen is None or is_first or 0 < entries < seen.entries:
        seen = _Seen(f"{invocation_id}#{next(_numbers)}", entries)
    elif entries > seen.entries:
        seen = _Seen(seen.execution, entries)
    _seen.put(invocation_id, seen)
    if start is not None:
        start.execution = seen.execution
    return seen.execution

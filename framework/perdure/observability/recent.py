"""What a process remembers of the last invocations, for counting right; nothing else may rely on it."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Recent"]

T = TypeVar("T")


class Recent(Generic[T]):
    """What is known of the last few keys: the older half is forgotten as a whole, which costs less than one at a time.

    Args:
        size: Of how many keys at least.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._young: dict[str, T] = {}
        self._old: dict[str, T] = {}

    def get(self, key: str) -> T | None:
        """Return what is known of a key, or None."""
        known = self._young.get(key)
        return self._old.get(key) if known is None else known

    def put(self, key: str, value: T) -> None:
        """Keep something of a key."""
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value

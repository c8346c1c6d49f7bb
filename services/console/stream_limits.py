"""Limits on concurrent event streams: per session, per user and in total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from services.console.auth.sessions import Session
from services.console.problems import ConsoleError

_RETRY_AFTER: Final = 10
_TOTAL: Final = "total"


class StreamLimits:
    """Counts open streams in this process. Each queries the engine several times a second."""

    def __init__(self, *, per_session: int, per_user: int, total: int) -> None:
        self._limits = (per_session, per_user, total)
        self._open: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """The number of open streams."""
        return self._open[_TOTAL]

    @contextmanager
    def opened(self, session: Session) -> Iterator[None]:
        """Count a stream for the duration of the block.

        Raises:
            ConsoleError: The session or user (429), or the console (503), has too many.
        """
        keys = (f"session {session.id}", f"user {session.user.name}", _TOTAL)
        owners = ("this session has", "you have", None)
        for key, limit, owner in zip(keys, self._limits, owners, strict=True):
            if self._open[key] >= limit:
                if owner is None:
                    raise ConsoleError(503, "busy", f"{limit} live pages are open; try again", retry_after=_RETRY_AFTER)
                raise ConsoleError(
                    429, "too_many_open", f"{owner} {limit} live pages open; close one", retry_after=_RETRY_AFTER
                )
        self._open.update(keys)
        try:
            yield
        finally:
            for key in keys:
                self._open[key] -= 1
                if self._open[key] == 0:
                    del self._open[key]

"""How many live pages are served at the same time: bounded for each session, for each person, and in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError

_RETRY_AFTER: Final = 10


class Streams:
    """Counts open streams, in this process.

    Each of them asks the engine several times a second, so without bounds one session could keep the engine busy.

    Args:
        per_session: How many streams of one session are served at the same time.
        per_person: The same for one person, over all of their sessions.
        most: The same for all of them.
    """

    def __init__(self, *, per_session: int, per_person: int, most: int) -> None:
        self._bounds = (per_session, per_person, most)
        self._open: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many streams are open."""
        return self._open["all"]

    @contextmanager
    def opened(self, signed_in: SignedIn) -> Iterator[None]:
        """Count a stream as long as the context lasts.

        Args:
            signed_in: Who watches.

        Raises:
            ConsoleError: There are too many of the session or the person (429), or of all (503).
        """
        counted = (f"session {signed_in.session_id}", f"person {signed_in.person.name}", "all")
        whose = ("this session has", "you have", None)
        for name, bound, owner in zip(counted, self._bounds, whose, strict=True):
            if self._open[name] >= bound:
                if owner is None:
                    raise ConsoleError(
                        503, "busy", f"{bound} live pages are open already: try again", retry_after=_RETRY_AFTER
                    )
                raise ConsoleError(
                    429, "too_many_open", f"{owner} {bound} live pages open: close one", retry_after=_RETRY_AFTER
                )
        self._open.update(counted)
        try:
            yield
        finally:
            for name in counted:
                self._open[name] -= 1
                if self._open[name] == 0:
                    del self._open[name]

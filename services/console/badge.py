"""How many alerts are open, as the navigation of every page shows it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from services.console.engine import Engine
from services.console.people.persons import utc_now
from services.console.problems import ConsoleError

_KNOWN_FOR: Final = 2.0
_ANSWERS_WITHIN: Final = 1.0


class Badge:
    """Asks the engine, for all pages of a moment once; and no page waits for it longer than a second.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asking = asyncio.Lock()
        self._known: int | None = None
        self._known_until = 0.0

    async def count(self) -> int | None:
        """Return how many alerts are open; None when nobody knows: the reconciler does not look, or nobody answers."""
        async with self._asking:
            if time.monotonic() >= self._known_until:
                self._known = await self._ask()
                self._known_until = time.monotonic() + _KNOWN_FOR
            return self._known

    async def _ask(self) -> int | None:
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN):
                found = await self._engine.alerts()
        except (ConsoleError, TimeoutError):
            return None
        return len(found.open) + found.more if found.is_current(utc_now()) else None

"""The number of open alerts, as the navigation shows it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from services.console.auth.users import utc_now
from services.console.engine import EngineClient
from services.console.problems import ConsoleError

_CACHE_SECONDS: Final = 2.0
_TIMEOUT: Final = 1.0


class AlertCount:
    """Reads the number of open alerts, with a short cache and a short timeout, since every page shows it."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        self._cached: int | None = None
        self._cached_until = 0.0

    async def get(self) -> int | None:
        """Return the number of open alerts; None when it is unknown."""
        async with self._lock:
            if time.monotonic() >= self._cached_until:
                self._cached = await self._read()
                self._cached_until = time.monotonic() + _CACHE_SECONDS
            return self._cached

    async def _read(self) -> int | None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                alerts = await self._engine.alerts()
        except (ConsoleError, TimeoutError):
            return None
        return len(alerts.open) + alerts.more if alerts.is_current(utc_now()) else None

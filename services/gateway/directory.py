"""The registered handlers, read from the engine and cached for a few seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from perdure.engine.catalog import Catalog
from perdure.handlers import READ_ONLY
from services.console.engine import EngineClient

_CACHE_SECONDS: Final = 5.0
# Kinds of handlers that can write state, so their metadata cannot make them read-only.
_WRITING: Final = ("Exclusive", "Workflow")


@dataclass(frozen=True)
class Handlers:
    """The registered handlers.

    Args:
        keyed: The services whose handlers have a key.
        public: The public handlers, as ``Service/handler``.
        reading: The public handlers that are marked as read-only. A shared handler is not read-only by itself: it may
            resolve promises or send.
        mains: The main handlers of workflows, by service.
        catalog: The types of all handlers.
    """

    keyed: frozenset[str] = frozenset()
    public: frozenset[str] = frozenset()
    reading: frozenset[str] = frozenset()
    mains: Mapping[str, str] = field(default_factory=dict)
    catalog: Catalog = field(default_factory=lambda: Catalog([]))


@dataclass
class Directory:
    """Reads the handlers from the engine, with a cache."""

    engine: EngineClient
    _handlers: Handlers = field(default_factory=Handlers, init=False)
    _cached_until: float = field(default=0.0, init=False)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def handlers(self) -> Handlers:
        """Return the registered handlers."""
        async with self._lock:
            if time.monotonic() >= self._cached_until:
                self._handlers = await self._read()
                self._cached_until = time.monotonic() + _CACHE_SECONDS
            return self._handlers

    async def _read(self) -> Handlers:
        keyed, public, reading = set(), set(), set()
        mains: dict[str, str] = {}
        services = await self.engine.services()
        for service in services:
            name = service["name"]
            if service.get("ty") != "Service":
                keyed.add(name)
            for handler in service["handlers"]:
                if handler.get("ty") == "Workflow":
                    mains[name] = handler["name"]
                # A private service hides its handlers, even those declared public.
                if not (service.get("public", True) and handler.get("public", True)):
                    continue
                public.add(f"{name}/{handler['name']}")
                is_marked = (handler.get("metadata") or {}).get(READ_ONLY) == "true"
                if is_marked and handler.get("ty") not in _WRITING:
                    reading.add(f"{name}/{handler['name']}")
        return Handlers(frozenset(keyed), frozenset(public), frozenset(reading), mains, Catalog(services))

"""Which handlers may be called from outside: what the engine knows of the registered services, asked now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from perdure.handlers import READ_ONLY
from services.console.engine import Engine

_FRESH: Final = 5.0
# Kinds of handlers that have state to write: no mark makes them readers.
_WRITING: Final = ("Exclusive", "Workflow")


@dataclass(frozen=True)
class Known:
    """The handlers that the engine knows.

    Args:
        keyed: Services whose handlers have a key.
        public: Handlers that are declared public, as ``Service/handler``.
        reading: Those of them that are marked as reading. That a handler is shared doesn't say so: it has no state to
            write, but it may resolve what a workflow waits for, or send.
        mains: The main handlers of workflows, by service.
    """

    keyed: frozenset[str] = frozenset()
    public: frozenset[str] = frozenset()
    reading: frozenset[str] = frozenset()
    mains: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Directory:
    """Asks the engine, and knows the answer for a few seconds.

    Args:
        engine: The engine.
    """

    engine: Engine
    _known: Known = field(default_factory=Known, init=False)
    _until: float = field(default=0.0, init=False)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def known(self) -> Known:
        """Return the handlers.

        Raises:
            ConsoleError: The engine does not answer.
        """
        async with self._asking:
            if time.monotonic() >= self._until:
                self._known = await self._ask()
                self._until = time.monotonic() + _FRESH
            return self._known

    async def _ask(self) -> Known:
        keyed, public, reading = set(), set(), set()
        mains: dict[str, str] = {}
        for service in await self.engine.services():
            name = service["name"]
            if service.get("ty") != "Service":
                keyed.add(name)
            for handler in service["handlers"]:
                if handler.get("ty") == "Workflow":
                    mains[name] = handler["name"]
                # A service that is private hides its handlers, whatever they say themselves.
                if not (service.get("public", True) and handler.get("public", True)):
                    continue
                public.add(f"{name}/{handler['name']}")
                marked = (handler.get("metadata") or {}).get(READ_ONLY) == "true"
                if marked and handler.get("ty") not in _WRITING:
                    reading.add(f"{name}/{handler['name']}")
        return Known(frozenset(keyed), frozenset(public), frozenset(reading), mains)

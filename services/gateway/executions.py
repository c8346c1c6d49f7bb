"""The callers that started executions of workflows, from the engine's journal.

The gateway signs each request that it forwards. The engine stores the signature with the input of the invocation for as
long as the journal (`journal_retention`, a day after the end by default), so the gateway stores nothing. Without a
journal or signature, an execution has no known caller, and only operators may read it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from perdure.engine.admin import sql_text
from perdure.errors import Unauthenticated
from perdure.security import TrustedKeys
from perdure.security.callers import CALLER_HEADER, CallTarget, read_signed_call
from services.console.engine import EngineClient

_CACHE_SECONDS: Final = 5.0
_CACHE_SIZE: Final = 10_000
# The headers come first in an entry; the rest is the body.
_MAX_HEADERS: Final = 256 * 1024
# Cannot occur inside a value, where quotes are escaped.
_NAME: Final = f'{{"name":"{CALLER_HEADER}",'
_TOKEN: Final = re.compile(rf'{re.escape(_NAME)}"value":"([A-Za-z0-9_.-]*)"\}}')


@dataclass
class Executions:
    """Finds the callers of executions, with a cache.

    Args:
        engine: The engine.
        trusted_keys: The issuers whose signatures are accepted.
        clock: A monotonic clock in seconds.
    """

    engine: EngineClient
    trusted_keys: TrustedKeys
    clock: Callable[[], float] = time.monotonic
    _cache: dict[CallTarget, tuple[str, float]] = field(default_factory=dict, init=False)

    async def starter(self, target: CallTarget) -> str | None:
        """Return the caller that started an execution of a workflow's main handler; None if unknown."""
        now = self.clock()
        cached = self._cache.get(target)
        if cached is not None and cached[1] > now:
            return cached[0]
        name = await self._read(target)
        if name is not None:  # an unknown execution may be started at any time
            if len(self._cache) >= _CACHE_SIZE:
                self._cache = {key: entry for key, entry in self._cache.items() if entry[1] > now}
            if len(self._cache) < _CACHE_SIZE:
                self._cache[target] = (name, now + _CACHE_SECONDS)
        return name

    async def _read(self, target: CallTarget) -> str | None:
        rows = await self.engine.query(
            f"select substr(j.entry_json, 1, {_MAX_HEADERS}) as entry "  # noqa: S608 - quoted
            "from sys_invocation_status i join sys_journal j on j.id = i.id "
            f"where i.target_service_name = {sql_text(target.service)} "
            f"and i.target_service_key = {sql_text(target.key)} "
            f"and i.target_handler_name = {sql_text(target.handler)} and j.index = 0"
        )
        entry = "".join(row.get("entry") or "" for row in rows)
        token = _TOKEN.search(entry)
        if token is None or entry.count(_NAME) != 1:
            return None
        try:
            call = read_signed_call(self.trusted_keys, token[1])
        except Unauthenticated:
            return None
        return call.caller if call.target == target else None

"""The executions of workflows and their callers, as the engine's journal has them.

The gateway signs each request that it forwards, and the engine keeps the signature with the invocation's input as long
as it keeps the journal: a day after the end by default (`journal_retention`). So nothing is kept here, and a restart of
the console or a purge at the engine leaves nothing behind. Where the engine has no journal any more, or never had a
signature, no caller started the execution, and only an operator may read it.
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
from services.console.engine import Engine

_FRESH: Final = 5.0
_MOST: Final = 10_000
# The headers come first in an entry, and may be long; what follows is the body.
_HEADERS_WITHIN: Final = 256 * 1024
# Not to be found inside of a value, where quotes are escaped.
_NAME: Final = f'{{"name":"{CALLER_HEADER}",'
_TOKEN: Final = re.compile(rf'{re.escape(_NAME)}"value":"([A-Za-z0-9_.-]*)"\}}')


@dataclass
class Executions:
    """Looks up who started an execution; remembers the answer for a few seconds.

    Args:
        engine: The engine.
        trusted_keys: The issuers whose signatures are accepted.
        clock: A clock that never goes back, in seconds.
    """

    engine: Engine
    trusted_keys: TrustedKeys
    clock: Callable[[], float] = time.monotonic
    _known: dict[CallTarget, tuple[str, float]] = field(default_factory=dict, init=False)

    async def starter(self, target: CallTarget) -> str | None:
        """Return the name of the caller who started an execution; None when no caller is known.

        Args:
            target: The workflow's main handler, with the key.

        Raises:
            ConsoleError: The engine does not answer.
        """
        now = self.clock()
        known = self._known.get(target)
        if known is not None and known[1] > now:
            return known[0]
        name = await self._ask(target)
        if name is not None:  # that nobody has started it may change at any time
            if len(self._known) >= _MOST:
                self._known = {each: found for each, found in self._known.items() if found[1] > now}
            if len(self._known) < _MOST:
                self._known[target] = (name, now + _FRESH)
        return name

    async def _ask(self, target: CallTarget) -> str | None:
        rows = await self.engine.query(
            f"select substr(j.entry_json, 1, {_HEADERS_WITHIN}) as entry "  # noqa: S608 - quoted
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

"""A cancel, or a deadline, that the engine cannot deliver to the running attempt.

Over HTTP/1.1, and after the inactivity timeout over HTTP/2, the engine sends nothing more to an attempt. A cancel
would wait until the running action ends. A process that knows the engine's admin API asks it instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, ClassVar, Final

FindCancel = Callable[[str, bool], Awaitable[bool]]
"""Returns whether an invocation is cancelled or, if the second argument says so, its first timer has fired; raises no
error."""

find_cancel: ContextVar[FindCancel | None] = ContextVar("perdure_find_cancel", default=None)

INTERVAL: Final = 2.0  # seconds between two searches for one invocation
MAX_RATE: Final = 20.0  # searches per second of this process


class LateCancel:
    """The cancel of one invocation.

    Args:
        invocation_id: The invocation.
        may_search: Tells whether the attempt cannot receive a cancel at present.
        has_deadline: Tells whether the first timer of the invocation has the effect of a cancel.
    """

    _next_search: ClassVar[float] = 0.0

    def __init__(
        self, invocation_id: str, may_search: Callable[[], bool], has_deadline: Callable[[], bool] = bool
    ) -> None:
        self.is_known = False
        """Whether the cancel was found."""
        self._invocation_id = invocation_id
        self._may_search = may_search
        self._has_deadline = has_deadline

    async def until_found(self, ends: set[asyncio.Future[Any]]) -> None:
        """Wait until the cancel is found, or the first of the futures is done."""
        find = find_cancel.get()
        interval = None if find is None else INTERVAL
        if (await asyncio.wait(ends, timeout=interval, return_when=asyncio.FIRST_COMPLETED))[0] or find is None:
            return
        search = asyncio.create_task(self._search(find))  # an end does not wait for a slow admin API
        try:
            await asyncio.wait({*ends, search}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            search.cancel()

    async def _search(self, find: FindCancel) -> None:
        while True:
            now = time.monotonic()
            turn = max(now, LateCancel._next_search)
            if self._may_search() and turn - now < INTERVAL:
                LateCancel._next_search = turn + 1 / MAX_RATE
                await asyncio.sleep(turn - now)
                if self.is_known or await find(self._invocation_id, self._has_deadline()):
                    self.is_known = True
                    return
            await asyncio.sleep(INTERVAL)

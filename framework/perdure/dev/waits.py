"""Reports of long waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

_FIRST: Final = timedelta(seconds=5)
_LONGEST_PAUSE: Final = timedelta(minutes=1)


@asynccontextmanager
async def reported_wait(
    report: Callable[[str], None], describe: Callable[[], str], *, first: timedelta = _FIRST
) -> AsyncIterator[None]:
    """Report the wait in the context if it takes longer than a few seconds, and again at growing intervals.

    Args:
        report: Receives a line.
        describe: Returns what is awaited, and why it is missing if that is known.
        first: Time before the first report.
    """

    async def repeat() -> None:
        began, pause = time.monotonic(), first.total_seconds()
        while True:
            await asyncio.sleep(pause)
            report(f"waiting for {describe()} ({time.monotonic() - began:.0f} s)")
            pause = min(2 * pause, _LONGEST_PAUSE.total_seconds())

    reports = asyncio.create_task(repeat())
    try:
        yield
    finally:
        reports.cancel()
        await asyncio.wait({reports})

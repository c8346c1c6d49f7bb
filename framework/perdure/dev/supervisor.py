"""Supervisor of the processes of a platform on one machine."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from perdure.dev.processes import STOP_TIMEOUT, ManagedProcess, ProcessError

_POLL: Final = 0.2
_MAX_RESTARTS: Final = 5
_RESTART_WINDOW: Final = timedelta(minutes=1)


class Supervisor:
    """Starts processes together, restarts those that end, and stops them in order.

    Args:
        tiers: The processes by name, in the order of stopping: a tier stops before the next one.
        report: Receives one line per event.
    """

    def __init__(self, tiers: Sequence[Mapping[str, ManagedProcess]], *, report: Callable[[str], None]) -> None:
        self._tiers = tiers
        self._processes = {name: process for tier in tiers for name, process in tier.items()}
        self._report = report

    async def start(self) -> None:
        """Start all processes and wait until they are ready. Call `stop` if this fails or is cancelled.

        Raises:
            PerdureError: A process cannot be started.
        """
        await run_together(process.start() for process in self._processes.values())

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop all processes, tier by tier.

        Args:
            hurry: When set, processes that still run are killed.

        Raises:
            ProcessError: A process does not end.
        """
        failures: list[BaseException] = []
        for tier in self._tiers:
            results = await asyncio.gather(*(process.stop(hurry) for process in tier.values()), return_exceptions=True)
            for name, result in zip(tier, results, strict=True):
                if isinstance(result, BaseException):
                    failures.append(result)
                elif not result:
                    why = "at once" if hurry.is_set() else f"{STOP_TIMEOUT.total_seconds():g} s after SIGTERM"
                    self._report(f"{name} was killed {why}; the engine retries its invocations")
        if failures:
            raise failures[0]

    def pid(self, name: str) -> int | None:
        """Return the process id; None while the process does not run."""
        return self._processes[name].pid

    def exit_reason(self, name: str) -> str | None:
        """Describe how a process ended by itself; None if it runs or was stopped here."""
        return self._processes[name].exit_reason()

    async def kill(self, name: str) -> None:
        """Kill a process with SIGKILL."""
        await self._processes[name].kill()

    async def restart(self, name: str) -> None:
        """Start a process that has ended, and wait until it is ready.

        Raises:
            PerdureError: The process cannot be started.
        """
        await self._processes[name].start()

    async def supervise(self) -> None:
        """Restart processes that end by themselves, until cancelled.

        Raises:
            PerdureError: A process cannot be started again, or keeps ending.
        """
        restarts: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_MAX_RESTARTS))
        while True:
            for name, process in self._processes.items():
                if (reason := process.exit_reason()) is None:
                    continue
                times, now = restarts[name], time.monotonic()
                if len(times) == _MAX_RESTARTS and now - times[0] < _RESTART_WINDOW.total_seconds():
                    raise ProcessError(f"{name} keeps ending: {reason}, after {_MAX_RESTARTS} restarts in a minute")
                times.append(now)
                self._report(f"{name}: {reason}; restarting it")
                await process.start()
                self._report(f"{name} runs again as process {process.pid}")
            await asyncio.sleep(_POLL)


async def run_together(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines concurrently; on the first error, cancel the others, await their cleanup and raise the error."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

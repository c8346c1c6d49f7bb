"""Supervisor of the processes of a platform on one machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NoReturn

from perdure.dev.processes import STOP_TIMEOUT, ManagedProcess
from perdure.dev.waits import reported_wait
from perdure.errors import PerdureError

SILENCE_LIMIT: Final = timedelta(seconds=30)
"""How long a process may not answer before it is restarted."""

# All in seconds.
_POLL: Final = 0.05
_FIRST_DELAY: Final = 0.25
_MAX_DELAY: Final = 5.0
_STABLE_AFTER: Final = 5.0
_PROBE_INTERVAL: Final = 2.0
_PROBE_TIMEOUT: Final = 5.0
_END_TIMEOUT: Final = 5.0


class Supervisor:
    """Starts processes together, restarts those that end, and stops them in order.

    Args:
        tiers: The processes by name, in the order of stopping: a tier stops before the next one.
        report: Receives one line per event.
        silence_limit: How long a process may not answer before it is ended with SIGTERM, then SIGKILL, and restarted.
    """

    def __init__(
        self,
        tiers: Sequence[Mapping[str, ManagedProcess]],
        *,
        report: Callable[[str], None],
        silence_limit: timedelta = SILENCE_LIMIT,
    ) -> None:
        self._tiers = tiers
        self._processes = {name: process for tier in tiers for name, process in tier.items()}
        self._replacing = {name: asyncio.Lock() for name in self._processes}
        self._report = report
        self._silence_limit = silence_limit.total_seconds()

    async def start(self) -> None:
        """Start all processes and wait until they are ready. Call `stop` if this fails or is cancelled.

        Raises:
            PerdureError: A process cannot be started.
        """
        waiting = set(self._processes)

        async def start(name: str, process: ManagedProcess) -> None:
            await process.start()
            waiting.discard(name)

        async with reported_wait(self._report, lambda: f"{', '.join(sorted(waiting))} to answer"):
            await run_together(start(name, process) for name, process in self._processes.items())

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

    async def replace(self, name: str) -> None:
        """Stop a process, within 5 seconds, and start it again, for example with newer code.

        Raises:
            PerdureError: The process cannot be started. It is not tried again.
        """
        async with self._replacing[name]:
            await self._end(self._processes[name])
            await self._processes[name].start()

    async def supervise(self) -> NoReturn:
        """Restart processes that end by themselves or do not answer for too long, until cancelled.

        Each process is supervised by itself: one that cannot start is tried again without end, and the others run on.
        """
        async with asyncio.TaskGroup() as group:
            for name, process in self._processes.items():
                group.create_task(self._keep_running(name, process))
        raise AssertionError("supervision ended")  # its tasks run until cancelled

    async def _keep_running(self, name: str, process: ManagedProcess) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            reason = await self._until_failed(name, process)
            failures = 0 if time.monotonic() - began > _STABLE_AFTER else failures + 1
            self._report(f"{name}: {reason}; restarting it")
            failures = await self._start_again(name, process, failures)
            self._report(f"{name} runs again as process {process.pid}")

    async def _start_again(self, name: str, process: ManagedProcess, failures: int) -> int:
        """Start a process until that succeeds, and return the number of successive failures."""
        reported = ""
        while True:
            await asyncio.sleep(restart_delay(failures))
            try:
                async with self._replacing[name], reported_wait(self._report, lambda: f"{name} to answer"):
                    if process.pid is None:  # it may have been replaced meanwhile
                        await process.start()
            except (PerdureError, OSError) as error:
                failures += 1
                cause = str(error).partition("\n")[0]
                if cause != reported:  # the end of the log differs at each attempt
                    self._report(f"{name} does not start, trying again every {_MAX_DELAY:g} s: {error}")
                    reported = cause
            else:
                return failures

    async def _until_failed(self, name: str, process: ManagedProcess) -> str:
        """Wait until a process has ended by itself, or end it after it has not answered for too long."""
        ended = asyncio.create_task(_until_ended(process, self._replacing[name]))
        silent = asyncio.create_task(self._until_silent(process))
        try:
            await asyncio.wait({ended, silent}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, silent):
                task.cancel()
            await asyncio.wait({ended, silent})
        if not ended.cancelled():
            return ended.result()
        silent.result()  # raises the error of a failed probe
        return f"process {process.pid} did not answer for {self._silence_limit:g} s and {await self._end(process)}"

    async def _until_silent(self, process: ManagedProcess) -> None:
        """Wait until a process has not answered for the limit.

        Only observed time counts: a supervisor that was itself stopped for a while must not end good processes.
        """
        pause = min(_PROBE_INTERVAL, self._silence_limit / 4)
        silence = 0.0
        while silence < self._silence_limit:
            began = time.monotonic()
            answers = process.pid is None or await _answers(process)  # a process that was stopped here is not silent
            await asyncio.sleep(pause)
            silence = 0.0 if answers else silence + min(time.monotonic() - began, _PROBE_TIMEOUT + pause)

    @staticmethod
    async def _end(process: ManagedProcess) -> str:
        """Stop a process that does not answer, and describe how."""
        hurry = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(_END_TIMEOUT, hurry.set)
        try:
            return f"was ended by {'SIGTERM' if await process.stop(hurry) else 'SIGKILL'}"
        except PerdureError as error:  # it is in the kernel; `start` refuses until it has ended
            return str(error)
        finally:
            timer.cancel()


def restart_delay(failures: int) -> float:
    """Return the seconds before the next start of a process, after a number of successive failures.

    Args:
        failures: Failed starts, and ends shortly after a start.
    """
    return 0.0 if failures == 0 else min(_MAX_DELAY, _FIRST_DELAY * 2 ** min(failures - 1, 16))


async def _until_ended(process: ManagedProcess, replacing: asyncio.Lock) -> str:
    while True:
        if not replacing.locked() and (reason := process.exit_reason()) is not None:
            return reason
        await asyncio.sleep(_POLL)


async def _answers(process: ManagedProcess) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            return await process.answers()
    except (TimeoutError, PerdureError):
        return False


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

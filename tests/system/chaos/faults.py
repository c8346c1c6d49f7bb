"""Applies the faults of a plan to a running platform, and lifts them."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg  # type: ignore[import-untyped] # it has no annotations

from perdure.dev.pidfiles import RunningProcess
from perdure.engine.admin import AdminClient, InvocationAction
from perdure.errors import EngineError, PerdureError
from tests.postgres import Postgres
from tests.support import WaitTimeout, eventually
from tests.system.chaos.harness import ChaosHarness
from tests.system.chaos.plan import SUPERVISOR, Fault, FaultKind

_ACCEPTED_WITHIN: Final = 10.0
_DELAY: Final = 0.3
_SPARE_MEMORY: Final = 4 * 1024 * 1024


class NotApplied(PerdureError):
    """A fault could not be applied, for example because its target does not run at the moment."""


@dataclass(frozen=True)
class Injector:
    """Applies faults.

    Args:
        harness: The platform and its surroundings.
        invocation: Returns the invocation ID of a trip by number; None if it is not accepted yet.
        restart: Starts the platform again after the supervisor was killed.
    """

    harness: ChaosHarness
    invocation: Callable[[int], str | None]
    restart: Callable[[], Awaitable[None]]

    async def inject(self, fault: Fault) -> None:
        """Apply a fault, wait for its duration, and lift it. A killed process has been replaced at the end.

        Raises:
            NotApplied: The fault could not be applied.
            WaitTimeout: A killed process was not replaced, or the database did not come back.
        """
        if fault.kind in _EVENTS:
            await _EVENTS[fault.kind](self, fault)
            return
        async with self._lasting(fault):
            await asyncio.sleep(fault.seconds)

    async def _kill(self, fault: Fault) -> None:
        if fault.target == SUPERVISOR:
            before = self.harness.platform.processes()
            await self.harness.platform.kill_supervisor()
            await self.restart()
            if orphaned := [name for name, process in before.items() if process.alive]:
                raise PerdureError(f"the killed supervisor's processes still run: {', '.join(orphaned)}")
            return
        process = self._process(fault.target)
        _send(process, signal.SIGKILL)
        await self.harness.platform.until_replaced(fault.target, process)

    async def _restart_database(self, fault: Fault) -> None:
        postgres = self._postgres()
        await asyncio.to_thread(postgres.stop, signal.SIGQUIT)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await asyncio.to_thread(postgres.start)

    async def _disconnect(self, _fault: Fault) -> None:
        try:
            await asyncio.to_thread(self._postgres().disconnect)
        except (OSError, asyncpg.PostgresError) as error:
            raise NotApplied(f"PostgreSQL does not answer: {error}") from error

    async def _control_trip(self, fault: Fault) -> None:
        number = int(fault.target)
        try:
            invocation = await eventually(
                lambda: self.invocation(number), what="accepted trip", within=_ACCEPTED_WITHIN
            )
        except WaitTimeout as error:
            raise NotApplied("the trip is not accepted yet") from error
        action: InvocationAction = "cancel" if fault.kind is FaultKind.CANCEL_TRIP else "kill"
        async with AdminClient(self.harness.platform.topology.admin_url) as admin:
            try:
                await admin.control_invocation(invocation, action)
            except EngineError as error:
                raise NotApplied("the trip has ended" if error.status_code in (404, 409) else str(error)) from error

    def _lasting(self, fault: Fault) -> AbstractAsyncContextManager[None]:
        link = self.harness.links.get(fault.target)
        match fault.kind:
            case FaultKind.DELAY if link:
                lasting = link.delayed(_DELAY)
            case FaultKind.CUT if link:
                lasting = link.cut()
            case FaultKind.BLACK_HOLE if link:
                lasting = link.black_holed()
            case FaultKind.STOP | FaultKind.LONG_STOP:
                lasting = self._stopped(fault.target)
            case FaultKind.FILL_DISK:
                lasting = self._full(fault.target)
            case FaultKind.LIMIT_DESCRIPTORS:
                lasting = self._limited(fault.target, resource.RLIMIT_NOFILE, _open_descriptors)
            case FaultKind.LIMIT_MEMORY:
                lasting = self._limited(fault.target, resource.RLIMIT_AS, _nearly_used_memory)
            case _:
                raise NotApplied(f"there is no '{fault}'")
        return lasting

    @asynccontextmanager
    async def _stopped(self, name: str) -> AsyncIterator[None]:
        process = self._process(name)
        _send(process, signal.SIGSTOP)
        try:
            yield
        finally:
            if process.alive:  # the supervisor may have replaced it
                _send(process, signal.SIGCONT)

    @asynccontextmanager
    async def _full(self, name: str) -> AsyncIterator[None]:
        with self.harness.disks[name].full():
            yield

    @asynccontextmanager
    async def _limited(self, name: str, limit: int, value: Callable[[RunningProcess], int]) -> AsyncIterator[None]:
        process = self._process(name)
        try:
            soft, hard = resource.prlimit(process.pid, limit)
            resource.prlimit(process.pid, limit, (value(process), hard))
        except OSError as error:
            raise NotApplied(f"{name}: {error}") from error
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # it has ended
                resource.prlimit(process.pid, limit, (soft, hard))

    def _process(self, name: str) -> RunningProcess:
        process = self.harness.platform.processes().get(name)
        if process is None:
            raise NotApplied(f"{name} does not run at the moment")
        return process

    def _postgres(self) -> Postgres:
        if self.harness.postgres is None:
            raise NotApplied("the database is SQLite")
        return self.harness.postgres


_EVENTS: Final[Mapping[FaultKind, Callable[[Injector, Fault], Awaitable[None]]]] = {
    FaultKind.KILL: Injector._kill,
    FaultKind.RESTART: Injector._restart_database,
    FaultKind.DISCONNECT: Injector._disconnect,
    FaultKind.CANCEL_TRIP: Injector._control_trip,
    FaultKind.KILL_TRIP: Injector._control_trip,
}


def _send(process: RunningProcess, number: signal.Signals) -> None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError as error:
        raise NotApplied(f"process {process.pid} has just ended") from error


def _open_descriptors(process: RunningProcess) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def _nearly_used_memory(process: RunningProcess) -> int:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE") + _SPARE_MEMORY

"""The whole platform: the engine and every service as processes, from the first start to the last stop."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from perdure.dev.pidfiles import leftovers, stop
from perdure.dev.processes import STOP_WITHIN, ChildProcess, ManagedProcess, ProcessError
from perdure.engine import LocatedEngine
from perdure.errors import ConfigurationError
from perdure.observability.tracing_setup import engine_tracing
from perdure.security.codec import JournalCodec, codec_from_environment
from services.data_plane.database import database_url
from services.data_plane.migrations import migrate
from services.runtime.connections import admin_client, answers, local_http
from services.runtime.engine import ManagedEngine
from services.runtime.registration import Registration, register
from services.runtime.topology import CONSOLE, ENGINE, ENGINE_PROXY, SERVICES, ServiceSpec, Topology
from services.runtime.trusted_keys import make_trusted_keys

_LOOK: Final = 0.2
_RESTARTS: Final = 5
_RESTARTS_WITHIN: Final = timedelta(minutes=1)


class Platform:
    """The engine and the services of a topology.

    Args:
        topology: Ports and folders.
        engine: The binary of the engine; or the engine as it is to be run, such as a cluster of nodes.
        tell: Is told what happens, a line each.
        environment: What services inherit; this process's own environment by default.
        console: Whether the console is one of its processes.

    Raises:
        ConfigurationError: A key can't be read or made.
    """

    def __init__(
        self,
        topology: Topology,
        engine: LocatedEngine | ManagedProcess,
        *,
        tell: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        console: bool = False,
    ) -> None:
        self.topology = topology
        self._tell = tell
        self._environment = os.environ if environment is None else environment
        self._http = local_http()
        topology.close_home()
        make_trusted_keys(topology, self._environment)  # the engine needs its key, too
        services = {spec.name: self._child(spec) for spec in SERVICES}
        managed = (
            engine
            if isinstance(engine, ManagedProcess)
            else ManagedEngine(engine, topology, engine_tracing(self._environment))
        )
        self._processes: dict[str, ManagedProcess] = {ENGINE: managed, **services}
        if isinstance(managed, ManagedEngine):  # the nodes of a cluster listen on ports of their own
            self._processes[ENGINE_PROXY] = self._proxy()
        if console:
            self._processes[CONSOLE] = self._console()

    async def start(self) -> None:
        """Bring the database up to date, start everything, and register the services.

        When it fails or is cancelled, call `stop`.

        Raises:
            PerdureError: Something can't be started; one sentence, perhaps with the end of a log.
        """
        await migrate_database(self.topology.database_url)
        await run_together(process.start() for process in self._processes.values())
        async with admin_client(self.topology.admin_url) as admin:
            registrations = [Registration(spec, self.topology.service_url(spec.name)) for spec in SERVICES]
            await register(admin, registrations)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop everything that runs: who calls before who is called, and the engine last.

        Args:
            hurry: Set, whatever still runs is killed.

        Raises:
            ProcessError: Something can't be ended.
        """
        failures: list[BaseException] = []
        for names in self._tiers():
            stops = (self._processes[name].stop(hurry) for name in names)
            results = await asyncio.gather(*stops, return_exceptions=True)
            for name, result in zip(names, results, strict=True):
                if isinstance(result, BaseException):
                    failures.append(result)
                elif not result:
                    why = "at once" if hurry.is_set() else f"{STOP_WITHIN.total_seconds():g} s after SIGTERM"
                    self._tell(f"{name} was killed, {why}; the engine retries what it was doing")
        await self._http.aclose()
        if failures:
            raise failures[0]

    @property
    def environment(self) -> Mapping[str, str]:
        """What its services inherit."""
        return self._environment

    @property
    def codec(self) -> JournalCodec | None:
        """What its journal is encrypted with; None when it is in clear.

        Raises:
            ConfigurationError: The keys can't be read.
        """
        return codec_from_environment(self._environment)

    def pid(self, name: str) -> int | None:
        """Return the id of a process, None when it isn't running.

        Args:
            name: A service's name, or `topology.ENGINE`.
        """
        return self._processes[name].pid

    def how_it_ended(self, name: str) -> str | None:
        """Say how a process ended by itself; None as long as it runs, or when it was stopped from here.

        Args:
            name: A service's name, or `topology.ENGINE`.
        """
        return self._processes[name].how_it_ended()

    async def kill(self, name: str) -> None:
        """End a process at once, as kill -9 does.

        Args:
            name: A service's name, or `topology.ENGINE`.
        """
        await self._processes[name].kill()

    async def start_again(self, name: str) -> None:
        """Start a process that has ended or was killed, and wait until it's ready.

        Args:
            name: A service's name, or `topology.ENGINE`.

        Raises:
            PerdureError: It can't be started.
        """
        await self._processes[name].start()

    async def supervise(self) -> None:
        """Start again whatever ends by itself, until cancelled.

        Raises:
            PerdureError: Something can't be started again, or doesn't stay up.
        """
        ends: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RESTARTS))
        while True:
            for name, process in self._processes.items():
                if (how := process.how_it_ended()) is None:
                    continue
                times, now = ends[name], time.monotonic()
                if len(times) == _RESTARTS and now - times[0] < _RESTARTS_WITHIN.total_seconds():
                    raise ProcessError(f"{name} doesn't stay up: {how}, as {_RESTARTS} times in the last minute")
                times.append(now)
                self._tell(f"{name}: {how}; starting it again")
                await process.start()
                self._tell(f"{name} runs again, as process {process.pid}")
            await asyncio.sleep(_LOOK)

    def _child(self, spec: ServiceSpec) -> ChildProcess:
        url = f"{self.topology.service_url(spec.name)}/ready"

        def environment() -> dict[str, str]:
            trusted_keys = make_trusted_keys(self.topology, self._environment)
            own = trusted_keys.notifications if spec.name == "notifications" else {}
            return {**self._environment, **self.topology.service_environment(spec.name), **trusted_keys.services, **own}

        return ChildProcess(
            spec.name,
            # -P: a folder `services` in the working directory is not to be taken for this one.
            [sys.executable, "-P", "-m", "services.runtime.serve", spec.name],
            ready=lambda: answers(self._http, url),
            environment=environment,
            log_file=self.topology.log_dir / f"{spec.name}.log",
            pid_file=self.topology.run_dir / f"{spec.name}.pid",
        )

    def _console(self) -> ChildProcess:
        return ChildProcess(
            CONSOLE,
            [sys.executable, "-P", "-m", "services.console.main"],
            ready=lambda: answers(self._http, f"{self.topology.console_url}/ready"),
            environment=lambda: {
                **self._environment,
                **self.topology.console_environment(),
                **make_trusted_keys(self.topology, self._environment).console,
            },
            log_file=self.topology.log_dir / f"{CONSOLE}.log",
            pid_file=self.topology.run_dir / f"{CONSOLE}.pid",
        )

    def _proxy(self) -> ChildProcess:
        topology = self.topology
        probes = (f"{topology.ingress_url}/restate/health", f"{topology.admin_url}/health")

        async def ready() -> bool:
            return all([await answers(self._http, probe) for probe in probes])

        return ChildProcess(
            ENGINE_PROXY,
            [sys.executable, "-P", "-m", "perdure.engine.proxy"],
            ready=ready,
            environment=lambda: {**self._environment, **topology.proxy_environment()},
            log_file=topology.log_dir / f"{ENGINE_PROXY}.log",
            pid_file=topology.run_dir / f"{ENGINE_PROXY}.pid",
        )

    def _tiers(self) -> list[list[str]]:
        control, data = ([spec.name for spec in SERVICES if spec.plane == plane] for plane in ("control", "data"))
        tiers = [[CONSOLE], control, data, [ENGINE_PROXY], [ENGINE]]
        return [[name for name in tier if name in self._processes] for tier in tiers]


async def migrate_database(url: str) -> None:
    """Bring a database to the newest schema and fill in the seed data that is missing.

    Args:
        url: See `services.data_plane.database.database_url`.

    Raises:
        ConfigurationError: The URL doesn't fit, or the database can't be reached or changed.
    """
    shown = database_url(url).render_as_string(hide_password=True)
    try:
        await migrate(url)
    except (OSError, SQLAlchemyError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise ConfigurationError(f"the database at {shown} can't be brought up to date: {reason}") from error


def stop_leftovers(run_dir: Path, tell: Callable[[str], None]) -> None:
    """Stop what an earlier launcher left running, because it was killed itself; blocks.

    Args:
        run_dir: The folder of its pid files, which this process holds the lock of.
        tell: Is told what happens.

    Raises:
        PerdureError: Something can't be stopped.
    """
    found = leftovers(run_dir)
    if not found:
        return
    names = ", ".join(f"{name} (process {process.pid})" for name, process in found.items())
    tell(f"an earlier run was killed and left processes behind; stopping {names}")
    # The engine last, as in every stop.
    for name in sorted(found, key=lambda name: name == ENGINE):
        stop(found[name], STOP_WITHIN)
    leftovers(run_dir)  # removes the files


async def run_together(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do things at the same time; when one fails, cancel the others, let them clean up, and raise its error.

    Args:
        starts: What to do.
    """
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

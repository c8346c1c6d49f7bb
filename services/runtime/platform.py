"""The trips platform as processes of this machine."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from perdure._runtime.disks import disk_problem
from perdure.dev.engine import ManagedEngine
from perdure.dev.log_rotation import rotate_regularly
from perdure.dev.pidfiles import leftovers, stop
from perdure.dev.processes import STOP_TIMEOUT, ChildProcess, ManagedProcess, ProcessError
from perdure.dev.supervisor import SILENCE_LIMIT, Supervisor
from perdure.dev.waits import reported_wait
from perdure.engine import LocatedEngine
from perdure.engine.proxy.app import HEALTH_PATH
from perdure.errors import ConfigurationError
from perdure.observability.tracing_setup import engine_tracing
from perdure.security.codec import JournalCodec, codec_from_environment
from services.data_plane.migrations import migrate
from services.database import database_url
from services.database_outages import DatabaseUnavailable, describe_database, one_line
from services.runtime.connections import admin_client, answers, local_http
from services.runtime.registration import Registration, register
from services.runtime.topology import CONSOLE, ENGINE, ENGINE_PROXY, SERVICES, ServiceSpec, Topology
from services.runtime.trusted_keys import make_trusted_keys

_DATABASE_WAIT: Final = timedelta(seconds=30)
_REGISTRATION_RETRY: Final = timedelta(seconds=10)
_POLL: Final = 0.2


class Platform(Supervisor):
    """The engine and the services of a topology, supervised.

    Args:
        topology: Ports and folders.
        engine: The engine's binary, or a managed engine such as a cluster of nodes.
        report: Receives one line per event.
        environment: Environment that the services inherit; that of this process by default.
        console: Whether to run the console.
        silence_limit: How long a process may not answer before it is restarted, see `supervise`.

    Raises:
        ConfigurationError: A key cannot be read or created.
    """

    def __init__(
        self,
        topology: Topology,
        engine: LocatedEngine | ManagedProcess,
        *,
        report: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        console: bool = False,
        silence_limit: timedelta = SILENCE_LIMIT,
    ) -> None:
        self.topology = topology
        self.environment = os.environ if environment is None else environment
        self._http = local_http()
        self._rotation: asyncio.Task[None] | None = None
        topology.close_home()
        make_trusted_keys(topology, self.environment)  # the engine needs its own key before it starts
        proxy: dict[str, ManagedProcess] = {}
        if isinstance(engine, LocatedEngine):  # cluster nodes listen on their own ports, without a proxy
            config = topology.engine_config(engine_tracing(self.environment))
            engine = ManagedEngine(engine, config, topology.run_dir / f"{ENGINE}.pid")
            proxy = {ENGINE_PROXY: self._proxy()}
        control, data = (
            {spec.name: self._child(spec) for spec in SERVICES if spec.plane == plane} for plane in ("control", "data")
        )
        tiers: list[Mapping[str, ManagedProcess]] = [
            {CONSOLE: self._console()} if console else {},
            control,
            data,
            proxy,
            {ENGINE: engine},
        ]
        super().__init__(tiers, report=report, silence_limit=silence_limit)

    @property
    def codec(self) -> JournalCodec | None:
        """The codec of an encrypted journal; None for a journal in clear text.

        Raises:
            ConfigurationError: The keys cannot be read.
        """
        return codec_from_environment(self.environment)

    async def start(self) -> None:
        """Migrate the databases, insert demo data, start all processes and register the services.

        Call `stop` if this fails.

        Raises:
            PerdureError: A process cannot be started; the message may include the end of its log.
        """
        await migrate_databases(self.topology.databases, demo=True, report=self._report)
        await super().start()
        self._rotation = asyncio.create_task(rotate_regularly(self.topology.log_dir), name="log rotation")
        registrations = [Registration(spec, self.topology.service_url(spec.name)) for spec in SERVICES]
        async with (
            reported_wait(self._report, lambda: "the registration of the services with the engine"),
            admin_client(self.topology.admin_url) as admin,
        ):
            try:
                await register(admin, registrations, retry=_REGISTRATION_RETRY)
            except ProcessError as error:
                # The engine answers on a full disk, but it accepts no registration.
                if problem := disk_problem(self.topology.home):
                    raise ProcessError(f"{error}; {problem}") from error
                raise

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop all processes: callers before callees, and the engine last. See `Supervisor.stop`."""
        if self._rotation is not None:
            self._rotation.cancel()
        try:
            await super().stop(hurry)
        finally:
            await self._http.aclose()

    def _child(self, spec: ServiceSpec) -> ChildProcess:
        # Not /ready: a database that is down or a backlog of calls is no reason to start the process again.
        url = f"{self.topology.service_url(spec.name)}/health"

        def environment() -> dict[str, str]:
            keys = make_trusted_keys(self.topology, self.environment)
            own = keys.notifications if spec.name == "notifications" else {}
            return {**self.environment, **self.topology.service_environment(spec.name), **keys.services, **own}

        return ChildProcess(
            spec.name,
            # -P: ignore a folder `services` in the working directory.
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
            ready=lambda: answers(self._http, f"{self.topology.console_url}/health"),
            environment=lambda: {
                **self.environment,
                **self.topology.console_environment(),
                **make_trusted_keys(self.topology, self.environment).console,
            },
            log_file=self.topology.log_dir / f"{CONSOLE}.log",
            pid_file=self.topology.run_dir / f"{CONSOLE}.pid",
        )

    def _proxy(self) -> ChildProcess:
        topology = self.topology
        probes = [f"{url}{HEALTH_PATH.decode()}" for url in (topology.ingress_url, topology.admin_url)]

        async def ready() -> bool:
            return all([await answers(self._http, probe) for probe in probes])

        return ChildProcess(
            ENGINE_PROXY,
            [sys.executable, "-P", "-m", "perdure.engine.proxy"],
            ready=ready,
            environment=lambda: {**self.environment, **topology.proxy_environment()},
            log_file=topology.log_dir / f"{ENGINE_PROXY}.log",
            pid_file=topology.run_dir / f"{ENGINE_PROXY}.pid",
        )


async def migrate_databases(
    urls: Mapping[str, str], *, demo: bool, report: Callable[[str], None], wait: timedelta = _DATABASE_WAIT
) -> None:
    """Migrate the databases to the newest schemas.

    Args:
        urls: Database URL by service, see `services.database.database_url`.
        demo: Also insert missing demo data.
        report: Receives a line if a database is not available at once.
        wait: How long to wait for a database that does not answer, since machines start both at the same time.

    Raises:
        ConfigurationError: A URL is invalid, or a database is unavailable or cannot be migrated.
    """
    deadline = time.monotonic() + wait.total_seconds()
    problem = ""
    async with reported_wait(report, lambda: problem):
        for service, url in urls.items():  # one after the other, since Alembic's context is global
            shown = describe_database(database_url(url, f"PERDURE_{service.upper()}_DATABASE_URL"))
            problem = f"the migration of {shown}"
            while True:
                try:
                    await migrate(service, url, demo=demo)
                    break
                except DatabaseUnavailable as error:
                    if not error.may_recover or time.monotonic() > deadline:
                        raise ConfigurationError(f"{error}: it cannot be migrated") from error
                    problem = f"the database: {error}"
                except SQLAlchemyError as error:
                    raise ConfigurationError(f"{shown} cannot be migrated: {one_line(error)}") from error
                await asyncio.sleep(_POLL)


def stop_leftovers(run_dir: Path, report: Callable[[str], None]) -> None:
    """Stop the remaining processes of an earlier, killed run. Blocks.

    Args:
        run_dir: Folder of the pid files; this process holds its lock.
        report: Receives one line per event.

    Raises:
        PerdureError: A process cannot be stopped.
    """
    found = leftovers(run_dir)
    if not found:
        return
    names = ", ".join(f"{name} (process {process.pid})" for name, process in found.items())
    report(f"stopping the remaining processes of an earlier run: {names}")
    engine = found.pop(ENGINE, None)
    with ThreadPoolExecutor() as threads:  # one that hangs takes the whole time limit
        list(threads.map(lambda process: stop(process, STOP_TIMEOUT), found.values()))
    if engine is not None:
        stop(engine, STOP_TIMEOUT)
    leftovers(run_dir)  # removes the files

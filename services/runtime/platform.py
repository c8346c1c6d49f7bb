"""The trips platform as processes of this machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from perdure.dev.engine import ManagedEngine
from perdure.dev.log_rotation import rotate_regularly
from perdure.dev.pidfiles import leftovers, stop
from perdure.dev.processes import STOP_TIMEOUT, ChildProcess, ManagedProcess
from perdure.dev.supervisor import Supervisor
from perdure.engine import LocatedEngine
from perdure.errors import ConfigurationError
from perdure.observability.tracing_setup import engine_tracing
from perdure.security.codec import JournalCodec, codec_from_environment
from services.data_plane.database import database_url
from services.data_plane.migrations import migrate
from services.runtime.connections import admin_client, answers, local_http
from services.runtime.registration import Registration, register
from services.runtime.topology import CONSOLE, ENGINE, ENGINE_PROXY, SERVICES, ServiceSpec, Topology
from services.runtime.trusted_keys import make_trusted_keys


class Platform(Supervisor):
    """The engine and the services of a topology, supervised.

    Args:
        topology: Ports and folders.
        engine: The engine's binary, or a managed engine such as a cluster of nodes.
        report: Receives one line per event.
        environment: Environment that the services inherit; that of this process by default.
        console: Whether to run the console.

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
        super().__init__(tiers, report=report)

    @property
    def codec(self) -> JournalCodec | None:
        """The codec of an encrypted journal; None for a journal in clear text.

        Raises:
            ConfigurationError: The keys cannot be read.
        """
        return codec_from_environment(self.environment)

    async def start(self) -> None:
        """Migrate the database, start all processes, and register the services. Call `stop` if this fails.

        Raises:
            PerdureError: A process cannot be started; the message may include the end of its log.
        """
        await migrate_database(self.topology.database_url)
        await super().start()
        self._rotation = asyncio.create_task(rotate_regularly(self.topology.log_dir), name="log rotation")
        async with admin_client(self.topology.admin_url) as admin:
            await register(admin, [Registration(spec, self.topology.service_url(spec.name)) for spec in SERVICES])

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop all processes: callers before callees, and the engine last. See `Supervisor.stop`."""
        if self._rotation is not None:
            self._rotation.cancel()
        try:
            await super().stop(hurry)
        finally:
            await self._http.aclose()

    def _child(self, spec: ServiceSpec) -> ChildProcess:
        url = f"{self.topology.service_url(spec.name)}/ready"

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
            ready=lambda: answers(self._http, f"{self.topology.console_url}/ready"),
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
        probes = (f"{topology.ingress_url}/restate/health", f"{topology.admin_url}/health")

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


async def migrate_database(url: str) -> None:
    """Migrate a database to the newest schema and insert missing seed data.

    Args:
        url: See `services.data_plane.database.database_url`.

    Raises:
        ConfigurationError: The URL is invalid, or the database cannot be reached or migrated.
    """
    shown = database_url(url).render_as_string(hide_password=True)
    try:
        await migrate(url)
    except (OSError, SQLAlchemyError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise ConfigurationError(f"the database at {shown} cannot be migrated: {reason}") from error


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
    # Stop the engine last.
    for name in sorted(found, key=lambda name: name == ENGINE):
        stop(found[name], STOP_TIMEOUT)
    leftovers(run_dir)  # removes the files

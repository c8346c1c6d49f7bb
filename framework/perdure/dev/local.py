"""An engine and the processes of services, supervised on this machine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import httpx

from perdure._runtime.disks import disk_problem
from perdure._runtime.http import http_client
from perdure.dev import ENGINE, ENGINE_PROXY
from perdure.dev.engine import ManagedEngine
from perdure.dev.log_rotation import rotate_regularly
from perdure.dev.processes import ChildProcess, ManagedProcess, ProcessError
from perdure.dev.supervisor import SILENCE_LIMIT, Supervisor
from perdure.dev.waits import reported_wait
from perdure.engine import EngineConfig, LocatedEngine
from perdure.engine.admin import AdminClient
from perdure.engine.config import LOOPBACK
from perdure.engine.deployments import DeploymentError, Registration, failing_calls, register
from perdure.engine.proxy.app import HEALTH_PATH

_REGISTRATION_RETRY: Final = timedelta(seconds=10)
_PROBE_TIMEOUT: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class LocalProcess:
    """A process with an HTTP port on this machine.

    Args:
        name: Name in messages, and of the log and pid file.
        url: Its address, with the probe ``/health``.
        command: Program and arguments.
        environment: Returns the complete environment; called at each start.
        registered: Whether it serves handlers to the engine.
        serves: Services that it must serve; empty for any.
    """

    name: str
    url: str
    command: Sequence[str]
    environment: Callable[[], Mapping[str, str]]
    registered: bool = True
    serves: Collection[str] = ()


class LocalPlatform(Supervisor):
    """The engine behind its proxy, and processes in front of it.

    Args:
        home: Folder of data, logs and pid files.
        engine: The engine's binary, or a managed engine without a proxy, such as a cluster of nodes.
        config: Settings of the engine, which listens on sockets; the proxy listens on its ports.
        tiers: The processes, in the order of stopping: callers before callees.
        environment: Environment of the proxy.
        report: Receives one line per event.
        silence_limit: How long a process may not answer before it is restarted, see `Supervisor`.
    """

    def __init__(
        self,
        home: Path,
        engine: LocatedEngine | ManagedProcess,
        config: EngineConfig,
        tiers: Sequence[Sequence[LocalProcess]],
        *,
        environment: Mapping[str, str],
        report: Callable[[str], None],
        silence_limit: timedelta = SILENCE_LIMIT,
    ) -> None:
        self.log_dir = home / "logs"
        self._home = home
        self._config = config
        self._run_dir = home / "run"
        self._http = http_client(config.admin_url, timeout=_PROBE_TIMEOUT)
        self._rotation: asyncio.Task[None] | None = None
        self._registrations = {
            each.name: Registration(each.name, each.url, each.serves)
            for tier in reversed(tiers)  # callees first
            for each in tier
            if each.registered
        }
        proxy: dict[str, ManagedProcess] = {}
        if isinstance(engine, LocatedEngine):
            engine = ManagedEngine(engine, config, self._run_dir / f"{ENGINE}.pid")
            proxy = {ENGINE_PROXY: self._proxy(environment)}
        processes: list[Mapping[str, ManagedProcess]] = [
            {each.name: self._child(each) for each in tier} for tier in tiers
        ]
        super().__init__([*processes, proxy, {ENGINE: engine}], report=report, silence_limit=silence_limit)

    async def start(self) -> None:
        """Start all processes, and register the services. Call `stop` if this fails.

        Raises:
            PerdureError: A process cannot be started or registered; the message may include the end of its log.
        """
        await super().start()
        self._rotation = asyncio.create_task(rotate_regularly(self.log_dir), name="log rotation")
        async with reported_wait(self._report, lambda: "the registration of the services with the engine"):
            await self.register(*self._registrations)

    async def register(self, *names: str) -> dict[str, list[str]]:
        """Register processes at the engine, and report calls among all services that would fail.

        Args:
            names: Names of the processes.

        Returns:
            The registered services of each process.

        Raises:
            PerdureError: The engine refuses a process.
        """
        async with AdminClient(self._config.admin_url) as admin:
            try:
                registered = await register(
                    admin,
                    [self._registrations[name] for name in names],
                    elsewhere="move",  # an earlier run with other ports
                    retry=_REGISTRATION_RETRY,
                )
            except DeploymentError as error:
                # The engine answers on a full disk, but it accepts no registration.
                if problem := disk_problem(self._home):
                    raise ProcessError(f"{error}; {problem}") from error
                raise
            for problem in await failing_calls(admin):
                self._report(f"warning: {problem}")
        return registered

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop all processes: callers before callees, and the engine last. See `Supervisor.stop`."""
        if self._rotation is not None:
            self._rotation.cancel()
        try:
            await super().stop(hurry)
        finally:
            await self._http.aclose()

    def _child(self, process: LocalProcess) -> ChildProcess:
        return ChildProcess(
            process.name,
            process.command,
            # Not /ready: a database that is down or a backlog of calls is no reason to start the process again.
            ready=lambda: self._answers(f"{process.url}/health"),
            environment=process.environment,
            log_file=self.log_dir / f"{process.name}.log",
            pid_file=self._run_dir / f"{process.name}.pid",
        )

    def _proxy(self, environment: Mapping[str, str]) -> ChildProcess:
        probes = [f"{url}{HEALTH_PATH.decode()}" for url in (self._config.ingress_url, self._config.admin_url)]

        async def ready() -> bool:
            return all([await self._answers(probe) for probe in probes])

        return ChildProcess(
            ENGINE_PROXY,
            # -P: ignore a folder `perdure` in the working directory.
            [sys.executable, "-P", "-m", "perdure.engine.proxy"],
            ready=ready,
            environment=lambda: {**environment, **proxy_environment(self._config)},
            log_file=self.log_dir / f"{ENGINE_PROXY}.log",
            pid_file=self._run_dir / f"{ENGINE_PROXY}.pid",
        )

    async def _answers(self, url: str) -> bool:
        try:
            return (await self._http.get(url)).is_success
        except httpx.TransportError:
            return False


def proxy_environment(config: EngineConfig) -> dict[str, str]:
    """Return the environment variables of the proxy of an engine that listens on sockets.

    Args:
        config: Settings of the engine.
    """
    return {
        "PERDURE_PROXY_HOST": LOOPBACK,
        "PERDURE_PROXY_INGRESS_PORT": str(config.ingress_port),
        "PERDURE_PROXY_ADMIN_PORT": str(config.admin_port),
        "PERDURE_PROXY_INGRESS_UPSTREAM": f"unix:{config.ingress_socket}",
        "PERDURE_PROXY_ADMIN_UPSTREAM": f"unix:{config.admin_socket}",
    }

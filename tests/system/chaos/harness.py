"""Harness of chaos runs and the soak: a launched platform, proxies, a database server, and small disks."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import tempfile
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from perdure._runtime.ports import free_ports
from perdure.dev import ENGINE
from perdure.dev.interrupts import Interrupted
from perdure.engine import LocatedEngine
from perdure.engine.admin import AdminClient
from perdure.errors import PerdureError
from services.runtime.settings import setting_name
from services.runtime.topology import SERVICES, Topology
from tests.postgres import Postgres, find_postgres
from tests.support import eventually
from tests.system.chaos.disk import SmallDisk, has_private_mounts
from tests.system.chaos.launch import LaunchedPlatform
from tests.system.chaos.network import TcpProxy
from tests.system.chaos.plan import DATABASE, INGRESS, Ability
from tests.system.scenarios.harness import harness_environment

_UP_WITHIN: Final = 300.0
_POLL: Final = 0.25


def missing_abilities() -> set[Ability]:
    """Return the abilities that this machine or user lacks."""
    present = {
        Ability.DATABASE: find_postgres() is not None,
        Ability.DISK: has_private_mounts(),
        Ability.LIMITS: hasattr(resource, "prlimit"),
    }
    return {ability for ability, is_present in present.items() if not is_present}


@dataclass
class ChaosHarness:
    """A platform and its surroundings. Open it with `on`, and start it with `start`.

    Args:
        platform: The platform, not started.
        links: Proxies by name, see `tests.system.chaos.plan.LINKS`.
        postgres: The database server; None for SQLite.
        disks: Small disks by the name of the process that writes to them.
        left_behind: Names of the processes that the platform's stop did not end; set at the end.
    """

    platform: LaunchedPlatform
    links: Mapping[str, TcpProxy]
    postgres: Postgres | None
    disks: Mapping[str, SmallDisk]
    left_behind: list[str] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def on(
        cls, topology: Topology, engine: LocatedEngine, *, disk_size: int, hurry: asyncio.Event
    ) -> AsyncIterator[Self]:
        """Prepare everything; at the end, stop it and move the database into the folder of the topology.

        Args:
            topology: Ports and folders of the platform.
            engine: The engine's binary.
            disk_size: Size of a small disk in bytes.
            hurry: When set, the platform is killed instead of stopped.

        Raises:
            PerdureError: The database or a disk cannot be prepared.
        """
        environment = {**harness_environment(os.environ), "RESTATE_SERVER_BIN": str(engine.path)}
        has_disks = Ability.DISK not in missing_abilities()
        ports = {**topology.ports, INGRESS: topology.ingress_port}
        disks: dict[str, SmallDisk] = {}
        postgres = None
        async with AsyncExitStack() as stack:
            if has_disks:
                disks[ENGINE] = stack.enter_context(SmallDisk.on(topology.engine_config().data_dir, disk_size))
            if (binaries := find_postgres()) is not None:
                folder = stack.enter_context(_public_folder(topology.home / "postgres"))
                if has_disks:
                    disks[DATABASE] = stack.enter_context(SmallDisk.on(folder, disk_size))
                (ports[DATABASE],) = free_ports(1)
                postgres = await asyncio.to_thread(
                    stack.enter_context, Postgres.running(folder, binaries, ports[DATABASE])
                )
                await asyncio.to_thread(postgres.create_service_databases)
            links = {name: await stack.enter_async_context(TcpProxy.to(port)) for name, port in ports.items()}
            if postgres is not None:
                topology = replace(topology, databases=postgres.service_urls())
                proxied = postgres.service_urls(links[DATABASE].port)
                environment |= {setting_name(f"{name}_database_url"): url for name, url in proxied.items()}
            harness = cls(LaunchedPlatform(topology, environment), links, postgres, disks)
            try:
                yield harness
            finally:
                harness.left_behind = await harness.platform.stop(hurry)
                harness.platform.close()

    @property
    def ingress_url(self) -> str:
        """Address of the ingress for clients, behind a proxy."""
        return f"http://127.0.0.1:{self.links[INGRESS].port}"

    async def start(self) -> None:
        """Start the platform unless it runs, and route the engine's requests to services through the proxies.

        A start is repeated if it fails, since the machine may be busy or a fault may last.

        Raises:
            WaitTimeout: The platform or the engine does not get up.
        """
        last = ""

        async def is_up() -> bool:
            nonlocal last
            try:
                if not self.platform.is_running:
                    await self.platform.start()
                await self._route()
            except PerdureError as error:
                last = str(error)
                return False
            return True

        await eventually(is_up, what=lambda: f"platform that is up: {last}", within=_UP_WITHIN, every=_POLL)

    async def _route(self) -> None:
        topology = self.platform.topology
        proxied = {topology.service_url(spec.name): self.links[spec.name].port for spec in SERVICES}
        async with AdminClient(topology.admin_url) as admin:
            for deployment in await admin.deployments():
                if (port := proxied.get(str(deployment["uri"]).rstrip("/"))) is not None:
                    await admin.move_deployment(deployment["id"], f"http://127.0.0.1:{port}")


@contextmanager
def _public_folder(kept: Path) -> Iterator[Path]:
    """Create a folder that other users can reach, since PostgreSQL does not run as root; move it at the end.

    Args:
        kept: Where the folder is moved to.
    """
    # A folder for temporary files that belongs to this user may be closed to others.
    parent = Path(tempfile.mkdtemp(prefix="perdure-chaos-postgres-", dir="/tmp"))
    parent.chmod(0o711)
    folder = parent / "server"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.move(folder, kept)
        parent.rmdir()


@contextmanager
def one_sentence(what: str, home: Path) -> Iterator[None]:
    """Turn an unexpected error into one sentence, and write its traceback to the data that is kept.

    Args:
        what: The part of the test that may fail.
        home: Folder of the data.

    Raises:
        PerdureError: An error occurred.
    """
    try:
        yield
    except (PerdureError, Interrupted):
        raise
    except Exception as error:
        report = home / "error.log"
        report.write_text(traceback.format_exc())
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        text = " ".join(str(cause).split())
        raise PerdureError(f"{what} failed: {type(cause).__name__}: {text}; the traceback is in {report}") from error


@asynccontextmanager
async def cancelled_at_end() -> AsyncIterator[set[asyncio.Task[None]]]:
    """Provide a set of tasks, which are cancelled at the end of the context."""
    tasks: set[asyncio.Task[None]] = set()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

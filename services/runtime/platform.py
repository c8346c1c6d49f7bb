"""The trips platform as processes of this machine."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from perdure.dev.local import LocalPlatform, LocalProcess
from perdure.dev.processes import ManagedProcess
from perdure.dev.supervisor import SILENCE_LIMIT
from perdure.dev.waits import reported_wait
from perdure.engine import LocatedEngine
from perdure.errors import ConfigurationError
from perdure.observability.tracing_setup import engine_tracing
from perdure.security.codec import JournalCodec, codec_from_environment
from services.data_plane.migrations import migrate
from services.database import database_url
from services.database_outages import DatabaseUnavailable, describe_database, one_line
from services.runtime.topology import CONSOLE, SERVICES, ServiceSpec, Topology
from services.runtime.trusted_keys import make_trusted_keys

_DATABASE_WAIT: Final = timedelta(seconds=30)
_POLL: Final = 0.2


class Platform(LocalPlatform):
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
        topology.close_home()
        make_trusted_keys(topology, self.environment)  # the engine needs its own key before it starts
        control, data = (
            [self._service(spec) for spec in SERVICES if spec.plane == plane] for plane in ("control", "data")
        )
        super().__init__(
            topology.home,
            engine,
            topology.engine_config(engine_tracing(self.environment)),
            [[self._console()] if console else [], control, data],
            environment=self.environment,
            report=report,
            silence_limit=silence_limit,
        )

    @property
    def codec(self) -> JournalCodec | None:
        """The codec of an encrypted journal; None for a journal in clear text.

        Raises:
            ConfigurationError: The keys cannot be read.
        """
        return codec_from_environment(self.environment)

    async def start(self) -> None:
        """Migrate the databases, insert demo data, start all processes, and register the services.

        See `LocalPlatform.start`.
        """
        await migrate_databases(self.topology.databases, demo=True, report=self._report)
        await super().start()

    def _service(self, spec: ServiceSpec) -> LocalProcess:
        def environment() -> dict[str, str]:
            keys = make_trusted_keys(self.topology, self.environment)
            own = keys.notifications if spec.name == "notifications" else {}
            return {**self.environment, **self.topology.service_environment(spec.name), **keys.services, **own}

        return LocalProcess(
            name=spec.name,
            url=self.topology.service_url(spec.name),
            # -P: ignore a folder `services` in the working directory.
            command=[sys.executable, "-P", "-m", "services.runtime.serve", spec.name],
            environment=environment,
            serves=spec.serves,
        )

    def _console(self) -> LocalProcess:
        return LocalProcess(
            name=CONSOLE,
            url=self.topology.console_url,
            command=[sys.executable, "-P", "-m", "services.console.main"],
            environment=lambda: {
                **self.environment,
                **self.topology.console_environment(),
                **make_trusted_keys(self.topology, self.environment).console,
            },
            registered=False,
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

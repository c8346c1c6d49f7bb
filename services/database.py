"""Database of a service: a SQLite file that several processes share, or PostgreSQL.

Changes run in `Database.transaction`, reads of several rows in `Database.snapshot`. The engine retries transient
failures: an outage is raised as `DatabaseUnavailable`, a lock or serialization failure as the driver's exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from perdure.errors import ConfigurationError
from perdure.observability.tracing_setup import is_tracing
from services.database_outages import naming_outages
from services.sqlite import READ_ONLY, configure, make_file

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_CHECK_TIMEOUT = 1.5
_URL_HINT: Final = "use sqlite:///path/to/file.db or postgresql://user:password@host/name"
_SCHEMA_LOCK: Final = 0x70657264757265  # "perdure", as a number


def database_url(url: str, setting: str = "the database URL") -> URL:
    """Parse a database URL and select its asynchronous driver.

    Args:
        url: ``sqlite:///path/to/file.db`` or ``postgresql://user:password@host/name``, optionally with the driver.
        setting: Name of the setting, for messages.

    Raises:
        ConfigurationError: The URL is invalid, has an unsupported scheme, or names no SQLite file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(f"{setting} is invalid: {_URL_HINT}") from error
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None or parsed.drivername not in (parsed.get_backend_name(), driver):
        raise ConfigurationError(f"{setting}: '{parsed.drivername}' databases are not supported: {_URL_HINT}")
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError(
            f"{setting}: processes share one SQLite file: add its path to the URL, as in sqlite:///flights.db"
        )
    return parsed.set(drivername=driver)


class Database:
    """Connections of one process to the database. Create and dispose it in the same event loop.

    Args:
        url: See `database_url`.
        wait: Maximum wait for a lock or a connection. Then the attempt fails and the engine retries it.
        connections: Maximum number of connections.
        setting: See `database_url`.

    Attributes:
        url: The URL with the driver.
        file: The SQLite file; None for PostgreSQL.

    Raises:
        ConfigurationError: The URL is invalid.
    """

    _version_query = "SELECT version_num FROM alembic_version"

    def __init__(
        self,
        url: str,
        *,
        wait: timedelta = timedelta(seconds=5),
        connections: int = 8,
        setting: str = "the database URL",
    ) -> None:
        self.url = database_url(url, setting)
        self._wait = wait
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.file = Path(self.url.database or "") if self.is_sqlite else None
        # SQLite allows one writer at a time, and waiting connections poll for its lock. The semaphore queues the
        # writers of this process, so that only processes compete for the lock.
        self._writers = asyncio.Semaphore(1 if self.is_sqlite else connections)
        self._engine = (
            self._sqlite_engine(wait, connections) if self.is_sqlite else self._postgres_engine(wait, connections)
        )

    def _sqlite_engine(self, wait: timedelta, connections: int) -> AsyncEngine:
        engine = create_async_engine(
            self.url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=wait.total_seconds(),
            connect_args={"timeout": wait.total_seconds()},
        )
        configure(engine.sync_engine)
        return engine

    def _postgres_engine(self, wait: timedelta, connections: int) -> AsyncEngine:
        milliseconds = str(round(wait.total_seconds() * 1000))
        return create_async_engine(
            self.url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=wait.total_seconds(),
            pool_pre_ping=True,
            connect_args={
                "timeout": wait.total_seconds(),
                # Waiting for locks is bounded by `wait`, so a statement that takes much longer has lost its server.
                "command_timeout": 3 * wait.total_seconds(),
                "server_settings": {"application_name": "perdure", "lock_timeout": milliseconds},
            },
        )

    async def prepare(self) -> None:
        """Create a missing SQLite file. A PostgreSQL database must exist.

        Raises:
            ConfigurationError: The file cannot be created, or is not a database.
        """
        if self.file is not None:
            await make_file(self.file, wait=self._wait)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for writing. It commits at the end of the block, and rolls back if the block raises.

        PostgreSQL uses READ COMMITTED, because the loser of a race in the idempotency table reads the winner's row.

        Raises:
            DatabaseUnavailable: The database does not work at the moment.
        """
        async with self._writers, self._connected() as connection, connection.begin():
            yield connection

    @asynccontextmanager
    async def schema_change(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for a change of the schema. Those of other processes wait for its end.

        Raises:
            DatabaseUnavailable: The database does not work at the moment.
        """
        async with self.transaction() as connection:
            # A SQLite transaction locks the whole file from its beginning.
            if not self.is_sqlite:
                await connection.execute(text("SET LOCAL lock_timeout = '60s'"))
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Open a read-only transaction on one snapshot; it blocks no writer.

        Raises:
            DatabaseUnavailable: The database does not work at the moment.
        """
        options: dict[str, Any] = (
            {READ_ONLY: True} if self.is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        async with self._connected() as connection:
            await connection.execution_options(**options)
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        with naming_outages(self.url):
            async with self._engine.connect() as connection:
                yield connection

    async def check(self) -> None:
        """Check that the database answers and has a schema, for readiness.

        Raises:
            DatabaseUnavailable: The database does not answer.
            sqlalchemy.exc.SQLAlchemyError: It has no schema.
        """
        # Readiness allows two seconds, and would not name the database.
        with naming_outages(self.url):
            async with asyncio.timeout(_CHECK_TIMEOUT), self.snapshot() as connection:
                await connection.execute(text(self._version_query))

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Trace statements while the process serves, if tracing is on, and close all connections at the end."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.dispose)
            if is_tracing():
                stack.callback(self._trace_statements())
            yield

    def _trace_statements(self) -> Callable[[], object]:
        """Record a span for each statement, until the returned function is called."""
        # Imported here, since only processes that send spans need it.
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor  # noqa: PLC0415

        instrumentor = SQLAlchemyInstrumentor()
        # The instrumentation says that it knows SQLAlchemy below 2.1 only; the trace of a trip in
        # tests/observability shows that it does with ours.
        instrumentor.instrument(engine=self._engine.sync_engine, skip_dep_check=True)
        uninstrument: Callable[[], object] = instrumentor.uninstrument
        return uninstrument

    async def dispose(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

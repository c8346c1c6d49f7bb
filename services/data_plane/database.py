"""Database of the data plane: a SQLite file that several processes share, or PostgreSQL.

Changes run in `Database.transaction`, reads of several rows in `Database.snapshot`. The engine retries transient
failures: an outage is raised as `DatabaseUnavailable`, a lock or serialization failure as the driver's exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, MetaData, func, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from perdure.errors import ConfigurationError
from perdure.observability.tracing_setup import is_tracing
from services.database_outages import naming_outages
from services.sqlite import READ_ONLY, configure, make_file

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_CHECK_TIMEOUT = 1.5


class Base(DeclarativeBase):
    """Base of all tables. Constraints have names, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Timestamped:
    """A row with its time of creation, for information only."""

    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


def database_url(url: str) -> URL:
    """Parse a database URL and select its asynchronous driver.

    Args:
        url: ``sqlite:///path/to/file.db`` or ``postgresql://user:password@host/name``, optionally with the driver.

    Raises:
        ConfigurationError: The URL is invalid, has an unsupported scheme, or names no SQLite file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "the database URL is invalid: use sqlite:///path/to/file.db or postgresql://user:password@host/name"
        ) from error
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None or parsed.drivername not in (parsed.get_backend_name(), driver):
        raise ConfigurationError(
            f"'{parsed.drivername}' databases are not supported: use sqlite:///path/to/file.db or postgresql://…"
        )
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "the services share one SQLite file: add its path to the URL, as in sqlite:///trips.db"
        )
    return parsed.set(drivername=driver)


class Database:
    """Connections of one process to the database. Create and dispose it in the same event loop.

    Args:
        url: See `database_url`.
        wait: Maximum wait for a lock or a connection. Then the attempt fails and the engine retries it.
        connections: Maximum number of connections.

    Attributes:
        url: The URL with the driver.
        file: The SQLite file; None for PostgreSQL.

    Raises:
        ConfigurationError: The URL is invalid.
    """

    def __init__(self, url: str, *, wait: timedelta = timedelta(seconds=5), connections: int = 8) -> None:
        self.url = database_url(url)
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
                "server_settings": {"application_name": "perdure-data-plane", "lock_timeout": milliseconds},
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
                await connection.execute(text("SELECT version_num FROM alembic_version"))

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


async def insert_if_missing(connection: AsyncConnection, table: type[Base], **values: Any) -> bool:
    """Insert a row unless its key exists, and return whether the row was inserted. A unique constraint settles races.

    Args:
        connection: An open transaction.
        table: The table.
        **values: The row.
    """
    # A process imports the dialect of its database only.
    dialect = import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
    result = await connection.execute(dialect.insert(table).values(**values).on_conflict_do_nothing())
    return result.rowcount == 1

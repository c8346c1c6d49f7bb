"""The database of the data plane: SQLite in a file that several processes share, or PostgreSQL by URL.

Every change runs in `Database.transaction`, every look at more than one row in `Database.snapshot`. Transient trouble
(a lock, a lost connection, a serialization failure, an exhausted pool) leaves here as the driver's ordinary exception,
so that the engine retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from sqlalchemy import DateTime, MetaData, func, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from perdure.errors import ConfigurationError
from perdure.observability.tracing_setup import is_tracing
from services.sqlite import READ_ONLY, configure, make_file

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}


class Base(DeclarativeBase):
    """The tables of the data plane. Constraints have names, so that a migration can find them."""

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
    """A row that says when it was written, for people; no logic reads it."""

    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


def database_url(url: str) -> URL:
    """Read a database URL and choose the asynchronous driver for it.

    Args:
        url: ``sqlite:///path/to/file.db`` or ``postgresql://user:password@host/name``; a driver may be named.

    Raises:
        ConfigurationError: Not a URL, another kind of database, or a SQLite database without a file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "the database URL can't be read: use sqlite:///path/to/file.db or postgresql://user:password@host/name"
        ) from error
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None or parsed.drivername not in (parsed.get_backend_name(), driver):
        raise ConfigurationError(
            f"no support for databases by '{parsed.drivername}': use sqlite:///path/to/file.db or postgresql://…"
        )
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError("the services share one SQLite file: give the URL a path, as in sqlite:///trips.db")
    return parsed.set(drivername=driver)


class Database:
    """One process's connections to the database. Make it in the event loop that uses it, and dispose of it there.

    Args:
        url: See `database_url`.
        wait: How long to wait for a lock or a connection before the attempt fails and the engine retries it.
        connections: Most connections at a time.

    Attributes:
        url: The URL that is used, with the driver in it.
        file: SQLite's file, None for PostgreSQL.

    Raises:
        ConfigurationError: The URL does not fit.
    """

    def __init__(self, url: str, *, wait: timedelta = timedelta(seconds=5), connections: int = 8) -> None:
        self.url = database_url(url)
        self._wait = wait
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.file = Path(self.url.database or "") if self.is_sqlite else None
        # SQLite lets one writer in at a time, and those who wait for its lock poll for it. A queue in front keeps the
        # writers of one process in order and leaves polling to the few processes that share the file.
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
                # A statement waits for locks at most `wait`; an answer that takes much longer is a lost server.
                "command_timeout": 3 * wait.total_seconds(),
                "server_settings": {"application_name": "perdure-data-plane", "lock_timeout": milliseconds},
            },
        )

    async def prepare(self) -> None:
        """Make SQLite's file, if it is missing; PostgreSQL's databases are made by who runs the server.

        Raises:
            ConfigurationError: The file can't be made, or is no database.
        """
        if self.file is not None:
            await make_file(self.file, wait=self._wait)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for writing: committed at the end of the block, rolled back if the block raises.

        PostgreSQL runs it READ COMMITTED, as the barrier needs it: who loses a race reads what the winner committed.
        """
        async with self._writers, self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for reading: all of its queries see the database at one moment, and block no writer."""
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self._engine.connect())
            options: dict[str, Any] = (
                {READ_ONLY: True}
                if self.is_sqlite
                else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            )
            await connection.execution_options(**options)
            await stack.enter_async_context(connection.begin())
            yield connection

    async def check(self) -> None:
        """Ask the database for an answer, for readiness: it is there, and it was migrated.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: It gave none.
        """
        async with self.snapshot() as connection:
            await connection.execute(text("SELECT version_num FROM alembic_version"))

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Close every connection when the process stops serving; until then, statements are spans, if any are sent."""
        instrumentor = SQLAlchemyInstrumentor()
        if traced := is_tracing():
            # The instrumentation says that it knows SQLAlchemy below 2.1 only; the trace of a trip in
            # tests/observability shows that it does with ours.
            instrumentor.instrument(engine=self._engine.sync_engine, skip_dep_check=True)
        try:
            yield
        finally:
            if traced:
                instrumentor.uninstrument()
            await self.dispose()

    async def dispose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


async def insert_if_missing(connection: AsyncConnection, table: type[Base], **values: Any) -> bool:
    """Insert a row unless one with its key exists; a unique constraint decides, so that of two racing inserts one wins.

    Args:
        connection: An open transaction.
        table: Where to.
        **values: The row.

    Returns:
        True if this call inserted the row.
    """
    statement = (
        sqlite.insert(table).values(**values).on_conflict_do_nothing()
        if connection.dialect.name == "sqlite"
        else postgresql.insert(table).values(**values).on_conflict_do_nothing()
    )
    result = await connection.execute(statement)
    return result.rowcount == 1

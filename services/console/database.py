"""The console's database: SQLite in a file, or PostgreSQL by URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from perdure.errors import ConfigurationError
from services.console.tables import create_tables
from services.database_outages import describe_database, naming_outages, one_line
from services.sqlite import READ_ONLY, configure, make_file

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_WAIT = 5.0  # seconds for a lock or a connection
_URL_HINT = "use sqlite:///path/to/file.db or postgresql://user:password@host/name"


class Database:
    """Connections to the console's database. Create and dispose of it in the event loop that uses it.

    Raises:
        ConfigurationError: The URL is invalid or names an unsupported database.
    """

    def __init__(self, url: str) -> None:
        self._url = _parse(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._writers = asyncio.Semaphore(1 if self._is_sqlite else 8)
        options: dict[str, Any] = (
            {"connect_args": {"timeout": _WAIT}}
            if self._is_sqlite
            else {
                "pool_timeout": _WAIT,
                "pool_pre_ping": True,
                # Without limits, a request would wait for a server that does not answer.
                "connect_args": {"timeout": _WAIT, "command_timeout": 3 * _WAIT},
            }
        )
        self._engine = create_async_engine(self._url, **options)
        if self._is_sqlite:
            configure(self._engine.sync_engine)

    async def prepare(self) -> None:
        """Create the tables if there are none.

        Raises:
            DatabaseUnavailable: The database does not work at the moment.
            ConfigurationError: The database rejects the tables, or has another schema version.
        """
        if self._is_sqlite:
            await make_file(Path(self._url.database or ""), wait=timedelta(seconds=_WAIT))
        try:
            async with self.transaction() as connection:
                await connection.run_sync(create_tables)
        except SQLAlchemyError as error:
            raise ConfigurationError(
                f"{describe_database(self._url)} cannot be used for the console: {one_line(error)}"
            ) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction: committed at the end of the block, rolled back if the block raises.

        Raises:
            DatabaseUnavailable: The database does not work at the moment.
        """
        async with self._writers, self._connected() as connection, connection.begin():
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for reading.

        Raises:
            DatabaseUnavailable: The database does not work at the moment.
        """
        async with self._connected() as connection:
            await connection.execution_options(**{READ_ONLY: True})
            yield connection

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        with naming_outages(self._url):
            async with self._engine.connect() as connection:
                yield connection

    async def check(self) -> None:
        """Run a query, for readiness.

        Raises:
            DatabaseUnavailable: The database does not work at the moment.
            sqlalchemy.exc.SQLAlchemyError: The query failed.
        """
        async with self.reading() as connection:
            await connection.execute(text("SELECT version FROM console_schema"))

    async def dispose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(f"PERDURE_CONSOLE_DATABASE_URL is no database URL: {_URL_HINT}") from error
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None or (driver.startswith("sqlite") and parsed.database in (None, "", ":memory:")):
        raise ConfigurationError(
            f"PERDURE_CONSOLE_DATABASE_URL names an unsupported database, '{parsed.drivername}': {_URL_HINT}"
        )
    return parsed.set(drivername=driver)

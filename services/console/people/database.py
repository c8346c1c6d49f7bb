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
from services.console.people.tables import bring_up_to_date
from services.sqlite import READ_ONLY, configure, make_file

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_LOCK_WAIT = timedelta(seconds=5)


class Database:
    """Connections to the console's database. Make it in the event loop that uses it, and dispose of it there.

    Args:
        url: ``sqlite:///path/to/file.db`` or ``postgresql://user:password@host/name``.

    Raises:
        ConfigurationError: The URL does not fit.
    """

    def __init__(self, url: str) -> None:
        self._url = _read(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._writers = asyncio.Semaphore(1 if self._is_sqlite else 8)
        options: dict[str, Any] = (
            {"connect_args": {"timeout": _LOCK_WAIT.total_seconds()}} if self._is_sqlite else {"pool_pre_ping": True}
        )
        self._engine = create_async_engine(self._url, **options)
        if self._is_sqlite:
            configure(self._engine.sync_engine)

    async def prepare(self) -> None:
        """Make the tables, or bring them up to date.

        Raises:
            ConfigurationError: The database can't be reached or changed, or is a later program's.
        """
        if self._is_sqlite:
            await make_file(Path(self._url.database or ""), wait=_LOCK_WAIT)
        try:
            async with self.transaction() as connection:
                await connection.run_sync(bring_up_to_date)
        except (OSError, SQLAlchemyError) as error:
            shown = self._url.render_as_string(hide_password=True)
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            raise ConfigurationError(f"the console's database at {shown} can't be used: {reason}") from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction: committed at the end of the block, rolled back if the block raises."""
        async with self._writers, self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for reading."""
        async with self._engine.connect() as connection:
            await connection.execution_options(**{READ_ONLY: True})
            yield connection

    async def check(self) -> None:
        """Ask the database for an answer, for readiness.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: It gave none.
        """
        async with self.reading() as connection:
            await connection.execute(text("SELECT version FROM console_schema"))

    async def dispose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _read(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "PERDURE_CONSOLE_DATABASE_URL can't be read: use sqlite:///path/to/file.db or postgresql://user@host/name"
        ) from error
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None or (driver.startswith("sqlite") and parsed.database in (None, "", ":memory:")):
        raise ConfigurationError(
            f"PERDURE_CONSOLE_DATABASE_URL: no support for '{parsed.drivername}' like this: use "
            "sqlite:///path/to/file.db or postgresql://user@host/name"
        )
    return parsed.set(drivername=driver)

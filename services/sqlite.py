"""SQLite files that processes share: creation and connections."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Engine, event
from sqlalchemy.engine import Connection

from perdure.errors import ConfigurationError
from perdure.security.private_files import PRIVATE_FILE, PRIVATE_FOLDER

READ_ONLY: Final = "sqlite_read_only"
"""Execution option of a read-only connection, which waits for no writer."""

_POLL = 0.02


def sqlite_url(file: Path) -> str:
    """Return the URL of a database file, with the characters quoted that have a meaning in URLs."""
    return f"sqlite:///{quote(str(file.resolve()), safe='/ ')}"


async def make_file(file: Path, *, wait: timedelta) -> None:
    """Create a missing database file for its owner only, and enable its write-ahead log.

    SQLite ignores the busy timeout when two processes enable the write-ahead log at once, so this function polls. The
    setting is persistent: connections do not repeat it.

    Args:
        file: The file.
        wait: How long to wait while other processes use the file.

    Raises:
        ConfigurationError: The file cannot be created, is not a database, or stayed locked.
    """
    deadline = asyncio.get_running_loop().time() + wait.total_seconds()
    try:
        _touch(file)
        while not await asyncio.to_thread(_write_ahead, file, wait):
            if asyncio.get_running_loop().time() >= deadline:
                raise ConfigurationError(
                    f"the database {file} stayed locked for {wait.total_seconds():g} s: stop the process that uses it"
                )
            await asyncio.sleep(random.uniform(0, _POLL))  # noqa: S311 - jitter
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"the database {file} cannot be created: {reason}") from error


def _touch(file: Path) -> None:
    file.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    file.touch(mode=PRIVATE_FILE)


def _write_ahead(file: Path, wait: timedelta) -> bool:
    with closing(sqlite3.connect(file, timeout=wait.total_seconds(), isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # the low byte is the primary code
                return False
            raise
    return True


def configure(engine: Engine) -> None:
    """Configure connections: durable writes, foreign keys, and the lock before the first write."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # `begin` below starts transactions
        cursor = connection.cursor()
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Take the write lock at the start. A transaction that reads first could fail on a stale snapshot, without
        # waiting for the lock.
        reads_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

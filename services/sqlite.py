"""The SQLite files of the platform: how one is made, and how every process that shares it connects."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, event
from sqlalchemy.engine import Connection

from perdure.errors import ConfigurationError
from perdure.security.secrets import PRIVATE_FILE, PRIVATE_FOLDER

READ_ONLY: Final = "sqlite_read_only"
"""The execution option of a connection that only reads, and so waits for no writer."""

_POLL = 0.02


async def make_file(file: Path, *, wait: timedelta) -> None:
    """Make a database's file and its folder, unless they are there, and let readers and a writer work side by side.

    A file that is made is for its owner alone, and so are the logs that SQLite keeps beside it.

    That is the write-ahead log, which a file keeps once it has it. SQLite makes no process wait that asks for it while
    another one does the same: one of them is told at once that the file is locked, whatever its timeout. So this waits,
    and the connections ask no more.

    Args:
        file: The file.
        wait: How long to wait for others that use the file.

    Raises:
        ConfigurationError: The file can't be made, is no database, or stayed locked.
    """
    deadline = asyncio.get_running_loop().time() + wait.total_seconds()
    try:
        _touch(file)
        while not await asyncio.to_thread(_write_ahead, file, wait):
            if asyncio.get_running_loop().time() >= deadline:
                raise ConfigurationError(
                    f"the database {file} stayed locked for {wait.total_seconds():g} s: end what else uses it"
                )
            await asyncio.sleep(random.uniform(0, _POLL))  # noqa: S311 - two who wait must not stay in step
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"the database {file} can't be made: {reason}") from error


def _touch(file: Path) -> None:
    file.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    file.touch(mode=PRIVATE_FILE)


def _write_ahead(file: Path, wait: timedelta) -> bool:
    with closing(sqlite3.connect(file, timeout=wait.total_seconds(), isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # the low byte: the rest says why
                return False
            raise
    return True


def configure(engine: Engine) -> None:
    """Have each connection of an engine write durably, check foreign keys, and take the lock before it writes."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: `begin` below does
        cursor = connection.cursor()
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A write takes the lock first: a transaction that reads and then writes could otherwise fail half-way,
        # on a snapshot that is too old, without ever waiting for the lock.
        reads_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

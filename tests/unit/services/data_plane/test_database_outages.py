"""Outages of a real PostgreSQL server and of SQLite files, as services and the console report them."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import asyncpg  # type: ignore[import-untyped] # it has no annotations
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError

from perdure._runtime.ports import free_ports
from perdure.errors import ConfigurationError, Refused, is_terminal
from services.console.database import Database as ConsoleDatabase
from services.data_plane.migrations import migrate
from services.data_plane.schema_version import check_schema
from services.database import Database
from services.database_outages import DatabaseUnavailable, describe_database, naming_outages
from services.runtime.platform import migrate_databases
from tests.postgres import Postgres, running_postgres
from tests.support import until_sqlite_threads_end


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that tests stop. It listens on a port, since outages of sockets look different."""
    (port,) = free_ports(1)
    with running_postgres(port) as running:
        running.execute("CREATE DATABASE flights", "CREATE DATABASE console")
        asyncio.run(migrate("flights", running.url("flights"), demo=False))
        yield running


@pytest.fixture
async def database(server: Postgres) -> AsyncIterator[Database]:
    database = Database(server.url("flights"))
    await asked(database)
    yield database
    await database.dispose()


async def asked(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(text("SELECT 1"))


@pytest.fixture
def stopped(server: Postgres) -> Iterator[Postgres]:
    server.stop()
    yield server
    server.start()


async def test_stopped_server_refuses_connections(database: Database, stopped: Postgres) -> None:
    expected = rf"^the database at 127\.0\.0\.1:{stopped.port} refuses connections$"
    for attempt in (asked(database), database.check(), check_schema(database, "flights")):
        with pytest.raises(DatabaseUnavailable, match=expected) as caught:
            await attempt
        assert not is_terminal(caught.value)
        assert caught.value.may_recover


async def test_database_works_again_after_restart(database: Database, server: Postgres) -> None:
    await asyncio.to_thread(server.stop)
    with pytest.raises(DatabaseUnavailable):
        await asked(database)
    await asyncio.to_thread(server.start)
    await asked(database)


async def test_stop_in_transaction_is_named(database: Database, server: Postgres) -> None:
    async def interrupted() -> None:
        async with database.transaction() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.to_thread(server.stop)
            await connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable, match=f":{server.port} (is stopping|has closed the connection)$"):
        await interrupted()
    await asyncio.to_thread(server.start)


async def test_silent_server_is_named(server: Postgres, tmp_path: Path) -> None:
    database = Database(server.url("flights"), wait=timedelta(seconds=0.2))
    os.kill(server.pid, signal.SIGSTOP)  # its children accept nothing new either
    try:
        for attempt in (asked(database), database.check()):
            with pytest.raises(DatabaseUnavailable, match=f"^the database at .*:{server.port} does not answer$"):
                await attempt
    finally:
        os.kill(server.pid, signal.SIGCONT)
    await database.dispose()


async def test_exhausted_pool_is_named(server: Postgres) -> None:
    database = Database(server.url("flights"), wait=timedelta(seconds=2), connections=1)
    async with database.snapshot():
        with pytest.raises(DatabaseUnavailable, match="all connections of this process are in use"):
            await asked(database)
    await database.dispose()


async def migrate_flights(url: str, wait: timedelta = timedelta(seconds=30)) -> None:
    await migrate_databases({"flights": url}, demo=False, report=print, wait=wait)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://perdure@127.0.0.1:{port}/missing", "does not contain the database of the URL"),
        ("postgresql://guest@127.0.0.1:{port}/flights", "rejects the user or password"),
        ("postgresql://perdure@database.invalid:5432/flights", "unknown host name"),
    ],
)
async def test_wrong_url_fails_migration_at_once(server: Postgres, url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        await migrate_flights(url.format(port=server.port))


async def test_migration_waits_for_stopped_server(stopped: Postgres) -> None:
    migration = asyncio.ensure_future(migrate_flights(stopped.url("flights")))
    await asyncio.wait({migration}, timeout=0.5)
    assert not migration.done()
    await asyncio.to_thread(stopped.start)
    await migration


async def test_migration_ends_wait_with_cause(stopped: Postgres) -> None:
    with pytest.raises(ConfigurationError, match=rf":{stopped.port} refuses connections: it cannot be migrated$"):
        await migrate_flights(stopped.url("flights"), wait=timedelta(seconds=0.3))


async def test_console_names_stopped_server(server: Postgres) -> None:
    database = ConsoleDatabase(server.url("console"))
    await database.prepare()
    await asyncio.to_thread(server.stop)
    try:
        for attempt in (database.check(), database.prepare()):
            with pytest.raises(DatabaseUnavailable, match=rf":{server.port} refuses connections$"):
                await attempt
    finally:
        await asyncio.to_thread(server.start)
    await database.check()
    await database.dispose()


async def test_unusable_sqlite_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "trips.db"
    database = Database(f"sqlite:///{file}")
    with pytest.raises(DatabaseUnavailable, match=f"^the database {file} cannot be opened$"):
        await asked(database)
    await database.dispose()
    await until_sqlite_threads_end()


@pytest.mark.parametrize(
    ("code", "words"), [(sqlite3.SQLITE_FULL, "has a full disk"), (sqlite3.SQLITE_IOERR_FSYNC, "cannot be read")]
)
def test_sqlite_disk_errors_are_named(tmp_path: Path, code: int, words: str) -> None:
    failure = sqlite3.OperationalError("database or disk is full")
    failure.sqlite_errorcode = code  # as the driver sets it
    with pytest.raises(DatabaseUnavailable, match=words), naming_outages(make_url(f"sqlite:///{tmp_path}/trips.db")):
        raise DBAPIError("UPDATE", {}, failure)


def test_full_sqlite_database_is_named(tmp_path: Path) -> None:
    url = make_url(f"sqlite:///{tmp_path}/trips.db")

    def fill() -> None:
        with closing(sqlite3.connect(tmp_path / "trips.db")) as connection:
            connection.execute("PRAGMA max_page_count = 2")
            try:
                connection.execute("CREATE TABLE t AS SELECT randomblob(100000)")
            except sqlite3.OperationalError as error:
                raise DBAPIError("CREATE", {}, error) from error

    with pytest.raises(DatabaseUnavailable, match="has a full disk"), naming_outages(url):
        fill()


@given(
    st.sampled_from(
        [ValueError("x"), Refused("sold out"), IntegrityError("INSERT", {}, sqlite3.IntegrityError("x")), KeyError()]
    )
)
def test_other_errors_stay_unchanged(error: Exception) -> None:
    error.__cause__ = ConnectionRefusedError()  # of another system, for example
    with pytest.raises(type(error)) as caught, naming_outages(make_url("postgresql://u:secret@db/trips")):
        raise error
    assert caught.value is error


def _postgres_errors() -> list[type[Exception]]:
    classes = [each for each in vars(asyncpg.exceptions).values() if isinstance(each, type)]
    return [each for each in classes if issubclass(each, asyncpg.PostgresError) and getattr(each, "sqlstate", None)]


@given(st.sampled_from(_postgres_errors()))
def test_errors_of_connection_contain_no_secret_or_type(kind: type[Exception]) -> None:
    url = make_url("postgresql://ada:hunter2@db:5433/trips")
    with pytest.raises(DatabaseUnavailable, match=r"^the database at db:5433 ") as caught, naming_outages(url):
        raise kind("no")
    assert "hunter2" not in str(caught.value)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://u:secret@db/trips", "the database at db:5432"),
        ("postgresql://u:secret@[::1]:5433/trips", "the database at [::1]:5433"),
        ("postgresql://u@/trips?host=/run/postgresql", "the database in /run/postgresql"),
        ("postgresql://u@/trips?host=db&port=99", "the database at db:99"),
        ("sqlite:////var/trips.db", "the database /var/trips.db"),
    ],
)
def test_database_is_named_by_address(url: str, name: str) -> None:
    assert describe_database(make_url(url)) == name

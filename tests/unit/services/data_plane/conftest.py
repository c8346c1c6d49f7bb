"""Test databases: SQLite, and PostgreSQL if its server is installed."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from services.data_plane.database import Database
from services.data_plane.migrations import migrate
from tests.unit.services.data_plane.agency import Agency
from tests.unit.services.data_plane.postgres import Postgres, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    name = postgres.create()
    asyncio.run(migrate(postgres.url(name)))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "trips.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'trips.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url(server.create())


@pytest.fixture
def url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database with seed data."""
    if backend == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "trips.db")
        yield f"sqlite:///{tmp_path / 'trips.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = server.create(template=request.getfixturevalue("postgres_template"))
    yield server.url(name)
    server.execute(f"DROP DATABASE {name}")  # fails if the test left a connection open


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    yield database
    await database.dispose()


@pytest.fixture
async def second_database(url: str) -> AsyncIterator[Database]:
    """The same database through separate connections, as in a second process."""
    database = Database(url)
    yield database
    await database.dispose()


@pytest.fixture
def tamper(backend: str, url: str, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs SQL without constraint checks, to damage a database."""
    if backend == "sqlite":
        return lambda *statements: _tamper_sqlite(url.removeprefix("sqlite:///"), statements)
    server: Postgres = request.getfixturevalue("postgres")
    name = urlsplit(url).path.removeprefix("/")
    drop = """DO $$ DECLARE c record; BEGIN
        FOR c IN SELECT conrelid::regclass AS t, conname FROM pg_constraint
                 WHERE contype IN ('c', 'f') AND connamespace = 'public'::regnamespace
        LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.t, c.conname); END LOOP; END $$"""
    return lambda *statements: server.execute(drop, *statements, database=name)


def _tamper_sqlite(path: str, statements: tuple[str, ...]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def agency(database: Database) -> Agency:
    return Agency(database)


@pytest.fixture
def second_agency(second_database: Database) -> Agency:
    return Agency(second_database)

"""Test databases: SQLite, and PostgreSQL if its server is installed."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import pytest

from services.data_plane.migrations import migrate
from services.data_plane.schemas import SCHEMAS
from services.database import Database
from tests.postgres import Postgres, running_postgres
from tests.unit.services.data_plane.agency import Agency

T = TypeVar("T")


class PerService(Mapping[str, T], Generic[T]):
    """A value for each service, created when it is first used."""

    def __init__(self, create: Callable[[str], T]) -> None:
        self._create = create
        self.created: dict[str, T] = {}

    def __getitem__(self, service: str) -> T:
        if service not in SCHEMAS:
            raise KeyError(service)
        if service not in self.created:
            # In a thread of its own, since the creation may run an event loop, and its user may run in one.
            with ThreadPoolExecutor(1) as thread:
                self.created[service] = thread.submit(self._create, service).result()
        return self.created[service]

    def __iter__(self) -> Iterator[str]:
        return iter(SCHEMAS)

    def __len__(self) -> int:
        return len(SCHEMAS)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_templates(postgres: Postgres) -> Mapping[str, str]:
    """The name of a database with demo data for each service."""

    def create(service: str) -> str:
        name = postgres.create()
        asyncio.run(migrate(service, postgres.url(name), demo=True))
        return name

    return PerService(create)


@pytest.fixture(scope="session")
def sqlite_templates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A file with demo data for each service."""
    folder = tmp_path_factory.mktemp("templates")

    def create(service: str) -> Path:
        path = folder / f"{service}.db"
        asyncio.run(migrate(service, f"sqlite:///{path}", demo=True))
        return path

    return PerService(create)


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_urls(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Mapping[str, str]:
    """A database without tables for each service."""
    if backend == "sqlite":
        return PerService(lambda service: f"sqlite:///{tmp_path / 'new' / f'{service}.db'}")
    server: Postgres = request.getfixturevalue("postgres")
    return PerService(lambda _: server.url(server.create()))


@pytest.fixture
def urls(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """A migrated database with demo data for each service."""
    if backend == "sqlite":
        files = request.getfixturevalue("sqlite_templates")
        yield PerService(lambda service: f"sqlite:///{shutil.copy(files[service], tmp_path / f'{service}.db')}")
        return
    server: Postgres = request.getfixturevalue("postgres")
    templates = request.getfixturevalue("postgres_templates")
    names = PerService(lambda service: server.create(template=templates[service]))
    yield PerService(lambda service: server.url(names[service]))
    for name in names.created.values():
        server.execute(f"DROP DATABASE {name}")  # fails if the test left a connection open


@pytest.fixture
def url(urls: Mapping[str, str]) -> str:
    """The database of Flights."""
    return urls["flights"]


async def _opened(urls: Mapping[str, str]) -> AsyncIterator[Mapping[str, Database]]:
    databases = PerService(lambda service: Database(urls[service]))
    yield databases
    for database in databases.created.values():
        await database.dispose()


@pytest.fixture
async def databases(urls: Mapping[str, str]) -> AsyncIterator[Mapping[str, Database]]:
    async for each in _opened(urls):
        yield each


@pytest.fixture
async def second_databases(urls: Mapping[str, str]) -> AsyncIterator[Mapping[str, Database]]:
    """The same databases through separate connections, as in a second process."""
    async for each in _opened(urls):
        yield each


@pytest.fixture
def database(databases: Mapping[str, Database]) -> Database:
    """The database of Flights."""
    return databases["flights"]


@pytest.fixture
def second_database(second_databases: Mapping[str, Database]) -> Database:
    """The database of Flights through separate connections."""
    return second_databases["flights"]


@pytest.fixture
def tamper(backend: str, urls: Mapping[str, str], request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs SQL without constraint checks, to damage the database of a service."""
    if backend == "sqlite":
        return lambda service, *statements: _tamper_sqlite(urls[service].removeprefix("sqlite:///"), statements)
    server: Postgres = request.getfixturevalue("postgres")
    drop = """DO $$ DECLARE c record; BEGIN
        FOR c IN SELECT conrelid::regclass AS t, conname FROM pg_constraint
                 WHERE contype IN ('c', 'f') AND connamespace = 'public'::regnamespace
        LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.t, c.conname); END LOOP; END $$"""
    return lambda service, *statements: server.execute(
        drop, *statements, database=urlsplit(urls[service]).path.removeprefix("/")
    )


def _tamper_sqlite(path: str, statements: tuple[str, ...]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def agency(databases: Mapping[str, Database]) -> Agency:
    return Agency(databases)


@pytest.fixture
def second_agency(second_databases: Mapping[str, Database]) -> Agency:
    return Agency(second_databases)

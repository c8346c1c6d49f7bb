"""Databases with the tables of `perdure.sql` and a table of stock: SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from perdure.sql import IdempotencyTable, Outbox
from tests.postgres import Postgres, running_postgres

METADATA = MetaData()
OPERATIONS = IdempotencyTable(METADATA)
OUTBOX = Outbox(METADATA)
STOCK = Table("stock", METADATA, Column("item", Text, primary_key=True), Column("taken", Integer, nullable=False))
ORDERS = Table("orders", METADATA, Column("id", Text, primary_key=True))


@pytest.fixture(scope="session", name="shop_postgres")
def _postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session", name="shop_template")
def _template(shop_postgres: Postgres) -> str:
    name = shop_postgres.create()
    asyncio.run(_create(_asyncpg(shop_postgres.url(name))))
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def shop_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
        asyncio.run(_create(url))
        yield url
        return
    server: Postgres = request.getfixturevalue("shop_postgres")
    name = server.create(template=request.getfixturevalue("shop_template"))
    yield _asyncpg(server.url(name))
    server.execute(f"DROP DATABASE {name}")  # fails if the test left a connection open


@pytest.fixture
async def shop_engine(shop_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(shop_url)
    yield engine
    await engine.dispose()


def _asyncpg(url: str) -> str:
    return url.replace("postgresql://", "postgresql+asyncpg://")


async def _create(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
        await connection.execute(insert(STOCK).values(item="book", taken=0))
    await engine.dispose()

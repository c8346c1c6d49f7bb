from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine

from perdure.sql import IdempotencyTable, Outbox, migrations

CONVENTION = {"ix": "ix_%(table_name)s_%(column_0_N_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"}


@pytest.mark.parametrize("convention", [None, CONVENTION], ids=["default", "convention"])
async def test_migrations_create_the_declared_tables(shop_engine: AsyncEngine, convention: dict[str, str]) -> None:
    metadata = MetaData(naming_convention=convention)
    IdempotencyTable(metadata, "own_operations")
    Outbox(metadata, "own_outbox")

    def migrate(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"target_metadata": metadata})
        migrations.create_idempotency_table(Operations(context), "own_operations")
        migrations.create_outbox_table(Operations(context), "own_outbox")
        return [each for each in compare_metadata(context, metadata) if "own_" in str(each)]

    async with shop_engine.begin() as connection:
        assert await connection.run_sync(migrate) == []

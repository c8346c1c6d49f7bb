"""What the tables of all services share."""

from __future__ import annotations

from datetime import datetime
from importlib import import_module
from typing import Any

from sqlalchemy import DateTime, MetaData, func
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def new_metadata() -> MetaData:
    """Return the metadata of one service. Constraints have names, so that migrations can refer to them."""
    return MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Timestamped:
    """A row with its time of creation, for information only."""

    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


async def insert_if_missing(connection: AsyncConnection, table: type[DeclarativeBase], **values: Any) -> bool:
    """Insert a row unless its key exists, and return whether the row was inserted. A unique constraint settles races.

    Args:
        connection: An open transaction.
        table: The table.
        **values: The row.
    """
    # A process imports the dialect of its database only.
    dialect = import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
    result = await connection.execute(dialect.insert(table).values(**values).on_conflict_do_nothing())
    return result.rowcount == 1

"""Alembic revisions of the schema, and the function `migrate` that applies them.

A new revision is a file in ``versions`` that names its predecessor. A test compares the schema with the models.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.database import Database
from services.data_plane.seed import seed

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATION_LOCK = 0x70657264757265  # "perdure", as a number


class SchemaBehind(Exception):
    """The database's schema is older than the code: run `perdure-platform migrate`."""


async def check_schema(database: Database) -> None:
    """Check that the schema is not older than this code, for readiness.

    A newer schema is accepted, so that an old version of a service keeps serving during an upgrade.

    Args:
        database: The database.

    Raises:
        SchemaBehind: The schema is older.
        DatabaseUnavailable: The database does not work at the moment.
    """
    async with database.snapshot() as connection:
        version = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none()
    if version is None or version in _older_versions():
        raise SchemaBehind(f"the schema's version is {version or 'none'}: run perdure-platform migrate")


@cache
def _older_versions() -> frozenset[str]:
    # Read from the names of the files, so that a service need not import Alembic.
    *older, _newest = sorted(path.name.partition("_")[0] for path in (Path(__file__).parent / "versions").glob("*.py"))
    return frozenset(older)


async def migrate(url: str) -> None:
    """Migrate a database to the newest schema and insert missing seed data.

    The migration is one transaction under a lock, so concurrent migrations are safe.

    Args:
        url: See `services.data_plane.database.database_url`. A missing SQLite file is created with its folder.

    Raises:
        ConfigurationError: The URL is invalid, or the SQLite file cannot be created.
        DatabaseUnavailable: The database does not work at the moment, or refuses the URL.
        sqlalchemy.exc.SQLAlchemyError: The database rejects a statement.
    """
    database = Database(url)
    try:
        await database.prepare()
        async with database.transaction() as connection:
            await _lock(connection)
            await connection.run_sync(upgrade)
            await seed(connection)
    finally:
        await database.dispose()


async def _lock(connection: AsyncConnection) -> None:
    # A SQLite transaction locks the whole file from its beginning.
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Apply missing revisions in the transaction of the connection."""
    from alembic import command  # noqa: PLC0415 - services import this module and do not migrate

    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Revert revisions in the transaction of the connection; ``"base"`` reverts all and deletes all data."""
    from alembic import command  # noqa: PLC0415 - likewise

    command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - likewise

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

"""The history of the schema, as Alembic revisions, and the one way to apply it: `migrate`.

A new revision is a file in ``versions`` that names its predecessor. A test compares the migrated schema with the tables
in the models, so neither can be changed without the other.
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
    """Ask the database for the version of its schema, for readiness.

    One that this code does not know is a newer one, as during an upgrade, when the old version goes on serving.

    Args:
        database: The database.

    Raises:
        SchemaBehind: The schema is older than this code.
        sqlalchemy.exc.SQLAlchemyError: The database gave no answer.
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
    """Bring a database to the newest schema and fill in the seed data that is missing.

    All of it is one transaction under a lock: of two processes that migrate at once, one waits and then finds nothing
    to do.

    Args:
        url: See `services.data_plane.database.database_url`. The folder of a SQLite file is made if it is missing.

    Raises:
        ConfigurationError: The URL does not fit, or SQLite's file can't be made.
        sqlalchemy.exc.SQLAlchemyError: The database can't be reached, or refuses.
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
    # SQLite's transaction holds the lock of the whole file from its begin.
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Apply the revisions that are missing, inside the connection's transaction."""
    from alembic import command  # noqa: PLC0415 - services import this module and do not migrate

    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Take revisions back, inside the connection's transaction; ``"base"`` takes all of them, and all data."""
    from alembic import command  # noqa: PLC0415 - likewise

    command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - likewise

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

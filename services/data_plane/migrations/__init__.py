"""The history of the schema, as Alembic revisions, and the one way to apply it: `migrate`.

A new revision is a file in ``versions`` that names its predecessor. A test compares the migrated schema with the tables
in the models, so neither can be changed without the other.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.database import Database
from services.data_plane.seed import seed

_MIGRATION_LOCK = 0x70657264757265  # "perdure", as a number


async def migrate(url: str) -> None:
    """Bring a database to the newest schema and fill in the seed data that is missing.

    All of it is one transaction under a lock: of two processes that migrate at once, one waits and then finds nothing
    to do.

    Args:
        url: See `services.data_plane.database.database_url`. The folder of a SQLite file is made if it is missing.

    Raises:
        ConfigurationError: The URL does not fit.
        sqlalchemy.exc.SQLAlchemyError: The database can't be reached, or refuses.
    """
    database = Database(url)
    try:
        if database.file is not None:
            database.file.parent.mkdir(parents=True, exist_ok=True)
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
    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Take revisions back, inside the connection's transaction; ``"base"`` takes all of them, and all data."""
    command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

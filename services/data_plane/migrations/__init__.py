"""Migrations of the services' databases. Each service has a history of its own.

A new revision is a file in ``services/data_plane/<service>/migrations`` that names its predecessor. Its ID starts with
the service's name, so that a database of another service is recognised. A test compares the schema with the tables.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from perdure.errors import ConfigurationError
from services.data_plane.schema_version import revisions_folder
from services.data_plane.schemas import SCHEMAS
from services.database import Database
from services.database_outages import describe_database


async def migrate(service: str, url: str, *, demo: bool) -> None:
    """Migrate a service's database to the newest schema.

    The migration is one transaction under a lock, so concurrent migrations are safe.

    Args:
        service: Name of the service.
        url: See `services.database.database_url`. A missing SQLite file is created with its folder.
        demo: Also insert missing demo data.

    Raises:
        ConfigurationError: The URL is invalid, the SQLite file cannot be created, or the database belongs to another
            service.
        DatabaseUnavailable: The database does not work at the moment, or refuses the URL.
        sqlalchemy.exc.SQLAlchemyError: The database rejects a statement.
    """
    database = Database(url)
    try:
        await database.prepare()
        async with database.schema_change() as connection:
            version = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
            if version is not None and not version.startswith(f"{service}_"):
                raise ConfigurationError(
                    f"{describe_database(database.url)} has the schema '{version}', which is not one of {service}: "
                    "each service needs a database of its own, and a shared one of an earlier version is not migrated"
                )
            await connection.run_sync(upgrade, service)
            if demo:
                await SCHEMAS[service].insert_demo_data(connection)
    finally:
        await database.dispose()


def upgrade(connection: Connection, service: str, revision: str = "head") -> None:
    """Apply missing revisions in the transaction of the connection."""
    command.upgrade(_config(connection, service), revision)


def downgrade(connection: Connection, service: str, revision: str) -> None:
    """Revert revisions in the transaction of the connection; ``"base"`` reverts all and deletes all data."""
    command.downgrade(_config(connection, service), revision)


def _config(connection: Connection, service: str) -> Config:
    config = Config()
    for option, value in {
        "script_location": str(Path(__file__).parent),
        "version_locations": str(revisions_folder(service)),
        "path_separator": "newline",  # folders may contain all other separators
    }.items():
        config.set_main_option(option, value.replace("%", "%%"))
    config.attributes.update(connection=connection, metadata=SCHEMAS[service].metadata)
    return config

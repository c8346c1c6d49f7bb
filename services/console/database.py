"""The console's database: SQLite in a file, or PostgreSQL by URL."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

from perdure.errors import ConfigurationError
from services import database
from services.console.tables import create_tables
from services.database_outages import describe_database, one_line


class Database(database.Database):
    """Connections to the console's database. Create and dispose of it in the event loop that uses it.

    Raises:
        ConfigurationError: The URL is invalid or names an unsupported database.
    """

    _version_query = "SELECT version FROM console_schema"

    def __init__(self, url: str) -> None:
        super().__init__(url, setting="PERDURE_CONSOLE_DATABASE_URL")

    async def prepare(self) -> None:
        """Create a missing SQLite file and the tables if there are none. Concurrent consoles wait for each other.

        Raises:
            DatabaseUnavailable: The database does not work at the moment.
            ConfigurationError: The database rejects the tables, or has another schema version.
        """
        await super().prepare()
        try:
            async with self.schema_change() as connection:
                await connection.run_sync(create_tables)
        except SQLAlchemyError as error:
            raise ConfigurationError(
                f"{describe_database(self.url)} cannot be used for the console: {one_line(error)}"
            ) from error

"""Process of a data-plane service."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from perdure import DataPlaneService
from perdure.serving import serve
from services.data_plane.database import Database
from services.data_plane.migrations import check_schema
from services.data_plane.settings import DataPlaneSettings
from services.protection import security


def serve_data_plane(read: Callable[[], DataPlaneSettings], define: Callable[[Database], DataPlaneService]) -> int:
    """Serve a service until SIGTERM, and return the exit code.

    Args:
        read: Reads the settings from the environment.
        define: Defines the service on a database.

    Raises:
        ValidationError: A setting is invalid.
        ConfigurationError: The database URL is invalid, or a secret cannot be read.
    """
    settings = read()
    database = Database(settings.database_url.get_secret_value())
    return serve(
        define(database),
        host=settings.host,
        port=settings.port,
        readiness={"database": database.check, "schema": partial(check_schema, database)},
        lifespan=database.lifespan,
        security=security(),
    )

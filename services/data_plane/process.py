"""From the environment to a served service: what the four processes of the data plane have in common."""

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
    """Serve one service until told to stop.

    Args:
        read: Reads its settings from the environment.
        define: Makes the service on its database.

    Returns:
        The exit code of `perdure.serving.serve`.

    Raises:
        ValidationError: A setting doesn't fit.
        ConfigurationError: The database's URL doesn't, or a secret can't be read.
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

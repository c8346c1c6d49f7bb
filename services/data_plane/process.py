"""From the environment to a served service: what the four processes of the data plane have in common."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError

from perdure import DataPlaneService
from perdure.errors import ConfigurationError
from perdure.observability.logging import configure_logging, get_logger
from perdure.serving import serve
from services.data_plane.database import Database
from services.data_plane.settings import DataPlaneSettings
from services.protection import security

log = get_logger(__name__)


def serve_data_plane(read: Callable[[], DataPlaneSettings], define: Callable[[Database], DataPlaneService]) -> int:
    """Serve one service until told to stop.

    Args:
        read: Reads its settings from the environment.
        define: Makes the service on its database.

    Returns:
        The exit code: 1 when the settings don't fit, else that of `perdure.serving.serve`.
    """
    try:
        settings = read()
        database = Database(settings.database_url.get_secret_value())
    except (ValidationError, ConfigurationError) as error:
        configure_logging()
        log.error("can't serve", reason=str(error))  # noqa: TRY400 - the message says it all, a traceback only hides it
        return 1
    return serve(
        define(database),
        host=settings.host,
        port=settings.port,
        readiness={"database": database.check},
        lifespan=database.lifespan,
        security=security(),
    )

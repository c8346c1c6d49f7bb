"""Process of a data-plane service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Final

from perdure import DataPlaneService
from perdure.observability.logging import get_logger
from perdure.serving import serve
from perdure.sql import IdempotencyTable
from services.data_plane.schema_version import check_schema
from services.data_plane.settings import DataPlaneSettings
from services.database import Database
from services.protection import security

PURGE_INTERVAL: Final = timedelta(hours=1)
"""Interval of the purges of the idempotency table."""

log = get_logger(__name__)


def serve_data_plane(
    read: Callable[[], DataPlaneSettings],
    define: Callable[[Database], DataPlaneService],
    operations: IdempotencyTable,
) -> int:
    """Serve a service until SIGTERM, and return the exit code.

    Args:
        read: Reads the settings from the environment.
        define: Defines the service on a database.
        operations: The idempotency table, to be purged.

    Raises:
        ValidationError: A setting is invalid.
        ConfigurationError: The database URL is invalid, or a secret cannot be read.
    """
    settings = read()
    setting = f"{settings.model_config.get('env_prefix')}DATABASE_URL"
    database = Database(settings.database_url.get_secret_value(), setting=setting)
    service = define(database)
    return serve(
        service,
        host=settings.host,
        port=settings.port,
        readiness={"database": database.check, "schema": partial(check_schema, database, service.name.lower())},
        lifespan=partial(_lifespan, database, operations, settings.operations_retention),
        security=security(),
    )


@asynccontextmanager
async def _lifespan(database: Database, operations: IdempotencyTable, retention: timedelta) -> AsyncIterator[None]:
    async with database.lifespan():
        purging = asyncio.create_task(purge_regularly(database, operations, retention), name="purge")
        try:
            yield
        finally:
            purging.cancel()
            with suppress(asyncio.CancelledError):
                await purging


async def purge_regularly(
    database: Database, operations: IdempotencyTable, retention: timedelta, interval: timedelta = PURGE_INTERVAL
) -> None:
    """Purge the idempotency table at once and then at an interval, until cancelled."""
    while True:
        try:
            if purged := await purge(database, operations, retention):
                log.info("operations.purged", rows=purged)
        except Exception:
            log.exception("operations.not_purged", retry_in=interval.total_seconds())  # nothing else purges
        await asyncio.sleep(interval.total_seconds())


async def purge(database: Database, operations: IdempotencyTable, retention: timedelta, batch: int = 1000) -> int:
    """Delete the rows of reversed writes that are older than the retention; return their number.

    Args:
        database: The service's database.
        operations: The idempotency table.
        retention: See `IdempotencyTable.purge`.
        batch: Maximum number of rows per transaction.
    """
    purged = 0
    while True:
        async with database.transaction() as connection:
            found = await operations.purge(connection, retention, limit=batch)
        purged += found
        if found < batch:
            return purged

"""The databases of a platform, as tests read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from services.database import Database


@asynccontextmanager
async def opened_databases(urls: Mapping[str, str]) -> AsyncIterator[dict[str, Database]]:
    """Open the database of each service.

    Args:
        urls: Database URL by service.
    """
    databases = {service: Database(url) for service, url in urls.items()}
    try:
        yield databases
    finally:
        for database in databases.values():
            await database.dispose()

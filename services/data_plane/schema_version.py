"""The version of a database's schema, as a service's readiness checks it. Services do not import Alembic."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sqlalchemy import text

from services.database import Database


class SchemaBehind(Exception):
    """The database's schema is older than the code, or that of another service."""


def revisions_folder(service: str) -> Path:
    """Return the folder of a service's Alembic revisions.

    Args:
        service: Name of the service.
    """
    return Path(__file__).parent / service / "migrations"


async def check_schema(database: Database, service: str) -> None:
    """Check that a database has the service's schema, and that it is not older than this code.

    A newer schema is accepted, so that an old version of a service keeps serving during an upgrade.

    Args:
        database: The database.
        service: Name of the service.

    Raises:
        SchemaBehind: The schema is older, or that of another service.
        DatabaseUnavailable: The database does not work at the moment.
    """
    async with database.snapshot() as connection:
        version = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none()
    if version is None or version in _older_versions(service):
        raise SchemaBehind(f"the schema's version is {version or 'none'}: run perdure-platform migrate")
    if not version.startswith(f"{service}_"):
        raise SchemaBehind(f"the schema's version is {version}, which is not one of {service}: correct the URL")


@cache
def _older_versions(service: str) -> frozenset[str]:
    # Read from the names of the files, so that a service need not import Alembic.
    *older, _newest = sorted(path.name.partition("_")[0] for path in revisions_folder(service).glob("*.py"))
    return frozenset(f"{service}_{number}" for number in older)

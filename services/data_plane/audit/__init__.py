"""Audit of the business invariants over the database.

The audit reads one snapshot of the database and calls neither services nor the engine, so the platform may be up or
down. `services.runtime.approval_audit` adds the comparison with approvals. The notification of a trip determines its
outcome:

    confirmed   ``trip-confirmed`` was sent: the trip holds exactly one seat set, one room and one charge.
    refused     ``trip-refused`` was sent: the trip holds nothing.
    open        No notification was sent: the trip is running or was rejected, and holds at most one of each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.errors import ConfigurationError
from services.data_plane.audit import inventory, keys, ledger, storage, trips
from services.data_plane.audit.report import AuditReport, Finding, Invariant
from services.data_plane.database import Database
from services.data_plane.tables import Base
from services.database_outages import DatabaseUnavailable

__all__ = ["AuditReport", "Finding", "Invariant", "audit", "audit_snapshot", "confirmed_charges"]


async def audit(url: str, *, settled: bool = False) -> AuditReport:
    """Check every invariant on one snapshot of the database.

    Args:
        url: See `services.data_plane.database.database_url`.
        settled: No trip is running, so an open trip must hold nothing.

    Raises:
        ConfigurationError: The database does not exist, is unreadable, or was never migrated.
    """
    async with _snapshot(url) as connection:
        return await audit_snapshot(connection, settled=settled)


async def confirmed_charges(url: str, *, over_minor: int) -> list[trips.ConfirmedCharge]:
    """Return the charges of confirmed trips above an amount.

    Args:
        url: See `services.data_plane.database.database_url`.
        over_minor: The amount in minor units.

    Raises:
        ConfigurationError: The database does not exist, is unreadable, or was never migrated.
    """
    async with _snapshot(url) as connection:
        return await trips.load_charges(connection, over_minor=over_minor)


@asynccontextmanager
async def _snapshot(url: str) -> AsyncIterator[AsyncConnection]:
    database = Database(url)
    shown = database.url.render_as_string(hide_password=True)
    _check_file(database.file)
    try:
        async with database.snapshot() as connection:
            missing = await connection.run_sync(_missing_tables)
            if missing:
                raise ConfigurationError(
                    f"the database at {shown} lacks the tables {', '.join(missing)}: run the migrations first"
                )
            yield connection
    except (DatabaseUnavailable, SQLAlchemyError) as error:
        raise ConfigurationError(f"the database at {shown} cannot be read: {error}") from error
    finally:
        await database.dispose()


def _check_file(file: Path | None) -> None:
    # SQLite creates a missing file.
    if file is not None and not file.is_file():
        raise ConfigurationError(f"there is no database at {file}: start the platform once to create it")


def _missing_tables(connection: Connection) -> list[str]:
    return sorted(set(Base.metadata.tables) - set(inspect(connection).get_table_names()))


async def audit_snapshot(connection: AsyncConnection, *, settled: bool = False) -> AuditReport:
    """Check every invariant in an open transaction.

    Args:
        connection: See `Database.snapshot`.
        settled: See `audit`.
    """
    known = await trips.load(connection)
    invariants = [
        *trips.check(known, settled=settled),
        await inventory.check(connection),
        *await ledger.check(connection),
        await keys.check(connection),
    ]
    if connection.dialect.name == "sqlite":
        invariants.append(await storage.check(connection))
    outcomes = [trip.outcome for trip in known.values()]
    return AuditReport(
        invariants=tuple(invariants),
        confirmed=outcomes.count("confirmed"),
        refused=outcomes.count("refused"),
        open=outcomes.count("open"),
    )

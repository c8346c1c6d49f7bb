"""Audit of the business invariants over the databases of all services.

The audit reads one snapshot of each database and calls neither services nor the engine, so the platform may be up or
down. `services.runtime.approval_audit` adds the comparison with approvals. The notification of a trip determines its
outcome:

    confirmed   ``trip-confirmed`` was sent: the trip holds exactly one seat set, one room and one charge.
    refused     ``trip-refused`` was sent: the trip holds nothing.
    open        No notification was sent: the trip is running or was rejected, and holds at most one of each.

The databases are read one after the other, Notifications first: a trip holds what its notification tells before the
notification is sent, so the later snapshots contain it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.errors import ConfigurationError
from services.data_plane.audit import inventory, keys, ledger, storage, trips
from services.data_plane.audit.report import AuditReport, Finding, Invariant
from services.data_plane.schemas import SCHEMAS
from services.database import Database
from services.database_outages import DatabaseUnavailable

__all__ = ["AuditReport", "Finding", "Invariant", "audit", "confirmed_charges"]


async def audit(urls: Mapping[str, str], *, settled: bool = False) -> AuditReport:
    """Check every invariant.

    Args:
        urls: Database URL by service, see `services.database.database_url`.
        settled: No trip is running, so an open trip must hold nothing.

    Raises:
        ConfigurationError: A database does not exist, is unreadable, or was never migrated.
    """
    known: dict[str, trips.Trip] = defaultdict(trips.Trip)
    stocks: list[inventory.Stock] = []
    operations: list[keys.Operations] = []
    files: list[storage.File] = []
    of_ledger: list[Invariant] = []
    for service in trips.READING_ORDER:
        async with _snapshot(service, urls[service]) as connection:
            await trips.read(connection, service, known)
            stocks += await inventory.read(connection, service)
            operations.append(await keys.read(connection, service))
            if service == "payments":
                of_ledger = await ledger.check(connection)
            if connection.dialect.name == "sqlite":
                files.append(await storage.read(connection))
    outcomes = [trip.outcome for trip in known.values()]
    return AuditReport(
        invariants=(
            *trips.check(known, settled=settled),
            inventory.check(stocks),
            *of_ledger,
            keys.check(operations),
            *([storage.check(files)] if files else []),
        ),
        confirmed=outcomes.count("confirmed"),
        refused=outcomes.count("refused"),
        open=outcomes.count("open"),
    )


async def confirmed_charges(urls: Mapping[str, str], *, over_minor: int) -> list[trips.ConfirmedCharge]:
    """Return the charges of confirmed trips above an amount.

    Args:
        urls: See `audit`.
        over_minor: The amount in minor units.

    Raises:
        ConfigurationError: A database does not exist, is unreadable, or was never migrated.
    """
    async with _snapshot("notifications", urls["notifications"]) as connection:
        confirmed = await trips.load_confirmed(connection)
    async with _snapshot("payments", urls["payments"]) as connection:
        charges = await trips.load_charges(connection, over_minor=over_minor)
    return [charge for charge in charges if charge.trip_id in confirmed]


@asynccontextmanager
async def _snapshot(service: str, url: str) -> AsyncIterator[AsyncConnection]:
    database = Database(url)
    shown = database.url.render_as_string(hide_password=True)
    _check_file(database.file)
    try:
        async with database.snapshot() as connection:
            missing = await connection.run_sync(_missing_tables, service)
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


def _missing_tables(connection: Connection, service: str) -> list[str]:
    return sorted(set(SCHEMAS[service].metadata.tables) - set(inspect(connection).get_table_names()))

"""The regular purge of a service's idempotency table."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from sqlalchemy import func, select, update

from services.contracts.flights import CancelSeats
from services.data_plane import process
from services.data_plane.flights.model import Seats
from services.data_plane.flights.tables import OPERATIONS
from services.data_plane.process import purge, purge_regularly
from services.database import Database
from tests.support import eventually

RETENTION = timedelta(days=90)


async def left(database: Database) -> int:
    async with database.snapshot() as connection:
        return (await connection.execute(select(func.count()).select_from(OPERATIONS.table))).scalar_one()


@pytest.fixture
async def old_operations(database: Database) -> int:
    """Five voided keys, older than the retention."""
    for number in range(5):
        await Seats(database).cancel(CancelSeats(key=f"k{number}", trip_id="T1"))
    async with database.transaction() as connection:
        old = datetime.now(UTC) - RETENTION - timedelta(days=1)
        await connection.execute(update(OPERATIONS.table).values(created_at=old))
    return 5


async def test_purge_takes_several_transactions(database: Database, old_operations: int) -> None:
    assert await purge(database, OPERATIONS, RETENTION, batch=2) == old_operations
    assert await left(database) == 0


@pytest.mark.usefixtures("old_operations")
async def test_purge_continues_after_database_outage(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = count(1)

    async def failing_first(*args: object) -> int:
        if next(attempts) == 1:
            raise ConnectionRefusedError("the database is down")
        return await purge(*args)

    monkeypatch.setattr(process, "purge", failing_first)
    purging = asyncio.create_task(purge_regularly(database, OPERATIONS, RETENTION, interval=timedelta(milliseconds=1)))

    async def purged() -> bool:
        return await left(database) == 0

    await eventually(purged, what="purge")
    purging.cancel()

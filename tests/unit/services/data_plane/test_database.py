from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from perdure.errors import ConfigurationError, is_terminal
from services.contracts.flights import FlightRequest, ReserveSeats
from services.data_plane.flights.model import Seats
from services.data_plane.flights.tables import FlightRow
from services.data_plane.tables import insert_if_missing
from services.database import Database, database_url
from services.database_outages import DatabaseUnavailable


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("sqlite:///trips.db", "sqlite+aiosqlite:///trips.db"),
        ("sqlite+aiosqlite:////var/trips.db", "sqlite+aiosqlite:////var/trips.db"),
        ("postgresql://u:p@h/db", "postgresql+asyncpg://u:p@h/db"),
        ("postgres://u:p@h/db", "postgresql+asyncpg://u:p@h/db"),
    ],
)
def test_url_selects_asynchronous_driver(given: str, used: str) -> None:
    assert database_url(given).render_as_string(hide_password=False) == used


@pytest.mark.parametrize(
    "given", ["", "trips.db", "mysql://h/db", "postgresql+psycopg2://h/db", "sqlite://", "sqlite:///:memory:"]
)
def test_refuse_unusable_database_url(given: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^PERDURE_X_URL.*sqlite:///"):
        database_url(given, "PERDURE_X_URL")


async def flights(database: Database) -> int:
    async with database.snapshot() as connection:
        return (await connection.execute(select(func.count()).select_from(FlightRow))).scalar_one()


async def test_exception_rolls_back_transaction(database: Database) -> None:
    before = await flights(database)

    async def fail() -> None:
        async with database.transaction() as connection:
            await insert_if_missing(connection, FlightRow, number="NEW", seats=1, seats_left=1)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await fail()
    assert await flights(database) == before


async def test_insert_only_missing_rows(database: Database) -> None:
    async with database.transaction() as connection:
        assert await insert_if_missing(connection, FlightRow, number="NEW", seats=2, seats_left=2)
        assert not await insert_if_missing(connection, FlightRow, number="NEW", seats=9, seats_left=9)
    async with database.snapshot() as connection:
        assert (await connection.execute(select(FlightRow.seats).where(FlightRow.number == "NEW"))).scalar_one() == 2


async def test_snapshot_is_consistent_and_does_not_block_writers(database: Database, second_database: Database) -> None:
    query = select(FlightRow.seats_left).where(FlightRow.number == "PD100")
    async with database.snapshot() as connection:
        before = (await connection.execute(query)).scalar_one()
        async with second_database.transaction() as writer:
            await writer.execute(update(FlightRow).where(FlightRow.number == "PD100").values(seats_left=1))
        assert (await connection.execute(query)).scalar_one() == before
    async with database.snapshot() as connection:
        assert (await connection.execute(query)).scalar_one() == 1


async def test_read_then_write_transactions_are_serialized(database: Database, second_database: Database) -> None:
    """On SQLite, a transaction that starts with a read cannot write after a write of another one."""
    seats = select(FlightRow.seats_left).where(FlightRow.number == "PD200").with_for_update()

    async def take(process: Database) -> None:
        async with process.transaction() as connection:
            left = (await connection.execute(seats)).scalar_one()
            await connection.execute(update(FlightRow).where(FlightRow.number == "PD200").values(seats_left=left - 1))

    await asyncio.gather(*(take(process) for process in [database, second_database] * 10))
    async with database.snapshot() as connection:
        assert (await connection.execute(select(FlightRow.seats_left).filter_by(number="PD200"))).scalar_one() == 160


async def test_foreign_keys_and_checks_are_enforced(databases: Mapping[str, Database]) -> None:
    statements = [
        "UPDATE accounts SET balance_minor = -1 WHERE kind = 'customer'",
        "INSERT INTO ledger_postings VALUES ('no-such-transaction', 'acct-ada', 1)",
    ]
    database = databases["payments"]
    for statement in statements:
        with pytest.raises(IntegrityError):
            async with database.transaction() as connection:
                await connection.execute(text(statement))


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_sqlite_is_durable_and_shared(database: Database, backend: str) -> None:
    async with database.snapshot() as connection:
        values = {
            pragma: (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one()
            for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5_000}


@pytest.fixture
async def hasty(url: str) -> AsyncIterator[Database]:
    """The database with a short lock timeout."""
    database = Database(url, wait=timedelta(milliseconds=100))
    yield database
    await database.dispose()


def reservation(key: str) -> ReserveSeats:
    return ReserveSeats(key=key, trip_id="T1", flight=FlightRequest(number="PD100", seats=1))


async def test_lock_timeout_is_transient_error(database: Database, hasty: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(update(FlightRow).values(seats_left=FlightRow.seats_left))
        with pytest.raises(DBAPIError) as caught:
            await Seats(hasty).reserve(reservation("k"))
        assert not is_terminal(caught.value)
    assert (await Seats(hasty).reserve(reservation("k"))).trip_id == "T1"


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_lost_connection_is_transient_error(database: Database, second_database: Database, backend: str) -> None:

    async def lose() -> None:
        async with database.transaction() as connection:
            pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            async with second_database.transaction() as killer:
                await killer.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            await connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable, match=r"has closed the connection$|is stopping$") as caught:
        await lose()
    assert not is_terminal(caught.value)
    assert (await Seats(database).reserve(reservation("k"))).trip_id == "T1"


async def test_cancelled_task_leaves_no_rows_or_locks(database: Database) -> None:
    inside = asyncio.Event()

    async def stuck() -> None:
        async with database.transaction() as connection:
            await connection.execute(update(FlightRow).values(seats_left=0))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stuck())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await Seats(database).reserve(reservation("k"))).trip_id == "T1"


async def test_readiness_requires_migrated_database(database: Database, tmp_path: Path) -> None:
    await database.check()
    async with Database(f"sqlite:///{tmp_path / 'none.db'}").lifespan() as _:
        pass
    empty = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    try:
        with pytest.raises(DBAPIError, match="alembic_version"):
            await empty.check()
    finally:
        await empty.dispose()

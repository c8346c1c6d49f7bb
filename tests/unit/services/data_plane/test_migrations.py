from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Connection, func, inspect, select, text, update

from services.data_plane import migrations
from services.data_plane.audit import audit
from services.data_plane.database import Base, Database
from services.data_plane.flights.tables import FlightRow
from services.data_plane.migrations import SchemaBehind, check_schema, downgrade, migrate
from services.data_plane.payments.tables import AccountRow, LedgerTransactionRow
from services.data_plane.seed import CUSTOMERS, FLIGHTS, HOTELS

Tamper = Callable[..., None]


def _differences(connection: Connection) -> list[str]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
    return [str(difference) for difference in compare_metadata(context, Base.metadata)]


def _constraints(connection: Connection) -> dict[str, set[str | None]]:
    inspector = inspect(connection)
    return {
        table: {check["name"] for check in inspector.get_check_constraints(table)} for table in Base.metadata.tables
    }


async def test_migrated_schema_matches_tables(database: Database) -> None:
    async with database.snapshot() as connection:
        assert await connection.run_sync(_differences) == []
        # Alembic compares no check constraints.
        assert await connection.run_sync(_constraints) == {
            name: {str(constraint.name) for constraint in table.constraints if isinstance(constraint, CheckConstraint)}
            for name, table in Base.metadata.tables.items()
        }


async def test_new_database_contains_valid_seed_data(empty_url: str) -> None:
    await migrate(empty_url)
    report = await audit(empty_url, settled=True)
    assert report.ok, report
    counts = {invariant.name: invariant.checked for invariant in report.invariants}
    assert counts["inventory"] == len(FLIGHTS) + len(HOTELS)
    assert counts["ledger-transactions"] == len(CUSTOMERS)


async def test_repeated_migration_adds_missing_rows_only(database: Database, url: str) -> None:
    async with database.transaction() as connection:
        await connection.execute(text("DELETE FROM flights WHERE number = 'PD404'"))
        await connection.execute(update(FlightRow).where(FlightRow.number == "PD200").values(seats_left=7))
        before = (await connection.execute(select(func.count()).select_from(LedgerTransactionRow))).scalar_one()
    await migrate(url)
    async with database.snapshot() as connection:
        flights = await connection.execute(select(FlightRow.number, FlightRow.seats_left))
        left = {row.number: row.seats_left for row in flights}
        after = (await connection.execute(select(func.count()).select_from(LedgerTransactionRow))).scalar_one()
        ada = (
            await connection.execute(select(AccountRow.balance_minor).where(AccountRow.account_id == "acct-ada"))
        ).scalar_one()
    assert left == {**FLIGHTS, "PD200": 7}
    assert after == before
    assert ada == CUSTOMERS["acct-ada"].opening_minor


async def test_concurrent_processes_migrate_once(empty_url: str) -> None:
    code = "import asyncio, sys; from services.data_plane.migrations import migrate; asyncio.run(migrate(sys.argv[1]))"
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", code, empty_url, stderr=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert (await audit(empty_url, settled=True)).ok


async def test_failed_migration_changes_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: object) -> None:
        raise RuntimeError("the seed is broken")

    monkeypatch.setattr("services.data_plane.migrations.seed", fail)
    with pytest.raises(RuntimeError, match="the seed is broken"):
        await migrate(empty_url)
    database = Database(empty_url)
    try:
        async with database.snapshot() as connection:
            assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == []
    finally:
        await database.dispose()


async def test_downgrade_removes_everything(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.run_sync(downgrade, "base")
    async with database.snapshot() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == ["alembic_version"]


def test_revision_ids_match_file_names() -> None:
    folder = Path(migrations.__file__).parent
    revisions = [each.revision for each in ScriptDirectory(str(folder)).walk_revisions()]
    assert sorted(revisions, reverse=True) == revisions
    assert sorted(revisions) == sorted(path.name.partition("_")[0] for path in (folder / "versions").glob("*.py"))


async def test_readiness_distinguishes_older_and_newer_schema(database: Database) -> None:
    await check_schema(database)
    async with database.transaction() as connection:
        await connection.run_sync(downgrade, "-1")
    with pytest.raises(SchemaBehind, match="run perdure-platform migrate"):
        await check_schema(database)
    async with database.transaction() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await check_schema(database)
    async with database.transaction() as connection:
        await connection.execute(text("DELETE FROM alembic_version"))
    with pytest.raises(SchemaBehind, match="version is none"):
        await check_schema(database)

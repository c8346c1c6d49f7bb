from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Mapping

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, MetaData, func, inspect, select, text, update

from perdure.errors import ConfigurationError
from services.data_plane import migrations
from services.data_plane.audit import audit
from services.data_plane.flights.demo import FLIGHTS
from services.data_plane.flights.tables import FlightRow
from services.data_plane.hotels.demo import HOTELS
from services.data_plane.migrations import downgrade, migrate
from services.data_plane.payments.demo import CUSTOMERS
from services.data_plane.payments.tables import AccountRow, LedgerTransactionRow
from services.data_plane.schema_version import SchemaBehind, check_schema, revisions_folder
from services.data_plane.schemas import SCHEMAS
from services.database import Database
from services.runtime.settings import DATABASE_OWNERS
from services.runtime.topology import SERVICES
from tests.system.scenarios.databases import opened_databases


def _differences(connection: Connection, metadata: MetaData) -> list[str]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
    return [str(difference) for difference in compare_metadata(context, metadata)]


def _constraints(connection: Connection, metadata: MetaData) -> dict[str, set[str | None]]:
    inspector = inspect(connection)
    return {table: {check["name"] for check in inspector.get_check_constraints(table)} for table in metadata.tables}


@pytest.mark.parametrize("service", SCHEMAS)
async def test_migrated_schema_matches_tables(databases: Mapping[str, Database], service: str) -> None:
    metadata = SCHEMAS[service].metadata
    async with databases[service].snapshot() as connection:
        assert await connection.run_sync(_differences, metadata) == []
        # Alembic compares no check constraints.
        assert await connection.run_sync(_constraints, metadata) == {
            name: {str(constraint.name) for constraint in table.constraints if isinstance(constraint, CheckConstraint)}
            for name, table in metadata.tables.items()
        }


def test_each_data_plane_service_has_a_schema() -> None:
    assert tuple(SCHEMAS) == DATABASE_OWNERS == tuple(spec.name for spec in SERVICES if spec.plane == "data")


@pytest.mark.parametrize("demo", [True, False])
async def test_migration_inserts_demo_data_on_request_only(empty_urls: Mapping[str, str], demo: bool) -> None:
    for service, url in empty_urls.items():
        await migrate(service, url, demo=demo)
    report = await audit(empty_urls, settled=True)
    assert report.ok, report
    counts = {invariant.name: invariant.checked for invariant in report.invariants}
    assert counts["inventory"] == (len(FLIGHTS) + len(HOTELS) if demo else 0)
    assert counts["ledger-transactions"] == (len(CUSTOMERS) if demo else 0)
    assert counts["balances"] == (len(CUSTOMERS) if demo else 0) + 4  # merchant and equity in two currencies


async def test_repeated_migration_adds_missing_rows_only(
    databases: Mapping[str, Database], urls: Mapping[str, str]
) -> None:
    count = select(func.count()).select_from(LedgerTransactionRow)
    async with databases["flights"].transaction() as connection:
        await connection.execute(text("DELETE FROM flights WHERE number = 'PD404'"))
        await connection.execute(update(FlightRow).where(FlightRow.number == "PD200").values(seats_left=7))
    async with databases["payments"].snapshot() as connection:
        before = (await connection.execute(count)).scalar_one()
    for service in ("flights", "payments"):
        await migrate(service, urls[service], demo=True)
    async with databases["flights"].snapshot() as connection:
        flights = await connection.execute(select(FlightRow.number, FlightRow.seats_left))
        left = {row.number: row.seats_left for row in flights}
    async with databases["payments"].snapshot() as connection:
        after = (await connection.execute(count)).scalar_one()
        ada = (
            await connection.execute(select(AccountRow.balance_minor).where(AccountRow.account_id == "acct-ada"))
        ).scalar_one()
    assert left == {**FLIGHTS, "PD200": 7}
    assert after == before
    assert ada == CUSTOMERS["acct-ada"].opening_minor


async def test_concurrent_processes_migrate_once(empty_urls: Mapping[str, str]) -> None:
    code = """
import asyncio, sys
from services.console.database import Database
from services.data_plane.migrations import migrate
async def main(payments, console):
    await migrate("payments", payments, demo=True)
    database = Database(console)
    await database.prepare()
    await database.dispose()
asyncio.run(main(*sys.argv[1:]))
"""
    payments, console = empty_urls["payments"], empty_urls["hotels"]
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", code, payments, console), stderr=asyncio.subprocess.PIPE
        )
        for _ in range(3)
    ]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    async with opened_databases({"payments": payments, "console": console}) as databases:
        async with databases["payments"].snapshot() as connection:
            accounts = select(func.count()).select_from(AccountRow).where(AccountRow.kind == "customer")
            assert (await connection.execute(accounts)).scalar_one() == len(CUSTOMERS)
        async with databases["console"].snapshot() as connection:
            versions = await connection.execute(text("SELECT version FROM console_schema"))
            assert len(list(versions)) == 1


async def test_failed_migration_changes_nothing(empty_urls: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: object) -> None:
        raise RuntimeError("the demo data is broken")

    broken = dataclasses.replace(SCHEMAS["flights"], insert_demo_data=fail)
    monkeypatch.setattr(migrations, "SCHEMAS", {**SCHEMAS, "flights": broken})
    with pytest.raises(RuntimeError, match="the demo data is broken"):
        await migrate("flights", empty_urls["flights"], demo=True)
    async with (
        opened_databases({"flights": empty_urls["flights"]}) as databases,
        databases["flights"].snapshot() as connection,
    ):
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == []


@pytest.mark.parametrize("service", SCHEMAS)
async def test_downgrade_removes_everything(databases: Mapping[str, Database], service: str) -> None:
    async with databases[service].transaction() as connection:
        await connection.run_sync(downgrade, service, "base")
    async with databases[service].snapshot() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == ["alembic_version"]


@pytest.mark.parametrize("service", SCHEMAS)
def test_revision_ids_name_service_and_number(service: str) -> None:
    files = sorted(revisions_folder(service).glob("*.py"))
    revisions = [next(line for line in path.read_text().splitlines() if line.startswith("revision")) for path in files]
    assert revisions == [f'revision = "{service}_{path.name.partition("_")[0]}"' for path in files]


async def test_migration_refuses_database_of_another_owner(database: Database, urls: Mapping[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="has the schema 'hotels_0001', which is not one of flights"):
        await migrate("flights", urls["hotels"], demo=False)
    async with database.transaction() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))  # of the shared database
    with pytest.raises(ConfigurationError, match="a shared one of an earlier version is not migrated"):
        await migrate("flights", urls["flights"], demo=False)


async def test_readiness_distinguishes_schemas(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def become(version: str) -> None:
        async with database.transaction() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})

    await check_schema(database, "flights")
    await become("flights_9999")
    await check_schema(database, "flights")  # newer
    await become("flights_0000")
    monkeypatch.setattr("services.data_plane.schema_version._older_versions", lambda _: {"flights_0000"})
    with pytest.raises(SchemaBehind, match="run perdure-platform migrate"):
        await check_schema(database, "flights")
    await become("hotels_0001")
    with pytest.raises(SchemaBehind, match="which is not one of flights"):
        await check_schema(database, "flights")
    async with database.transaction() as connection:
        await connection.execute(text("DELETE FROM alembic_version"))
    with pytest.raises(SchemaBehind, match="version is none"):
        await check_schema(database, "flights")

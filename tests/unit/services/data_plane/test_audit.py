"""The audit, on valid data and on damaged data for each invariant."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from perdure.errors import ConfigurationError
from services.contracts.flights import ReserveSeats
from services.data_plane.audit import AuditReport, audit
from services.data_plane.flights import tables as flights
from services.data_plane.hotels import tables as hotels
from services.data_plane.payments import tables as payments
from services.data_plane.process import purge
from tests.postgres import Postgres
from tests.system.scenarios.databases import opened_databases
from tests.unit.services.data_plane.agency import Agency

Tamper = Callable[..., None]

INVARIANTS = [
    "trips-confirmed",
    "trips-refused",
    "trips-open",
    "trips-told",
    "inventory",
    "ledger-currencies",
    "ledger-transactions",
    "charges",
    "balances",
    "keys",
]


def business(urls: Mapping[str, str], act: Callable[[Agency], Awaitable[None]]) -> None:
    """Run operations in a new event loop and close the databases."""

    async def run() -> None:
        async with opened_databases(urls) as databases:
            await act(Agency(databases))

    asyncio.run(run())


async def usual_day(agency: Agency) -> None:
    """Perform two confirmed trips, one refused trip, one early compensation and one open trip."""
    await agency.book("confirmed-1")
    await agency.book("confirmed-2")
    await agency.refuse("refused")
    await agency.cancel_seats("voided")
    await agency.notify("voided", "trip-refused")
    await agency.reserve_seats("open")


@pytest.fixture(scope="module")
def sqlite_templates(
    sqlite_templates: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """SQLite databases with the data of `usual_day`."""
    folder = tmp_path_factory.mktemp("usual-day")
    copies = {service: Path(shutil.copy(file, folder)) for service, file in sqlite_templates.items()}
    business({service: f"sqlite:///{file}" for service, file in copies.items()}, usual_day)
    return copies


@pytest.fixture(scope="module")
def postgres_templates(postgres: Postgres, postgres_templates: Mapping[str, str]) -> Mapping[str, str]:
    """PostgreSQL databases with the data of `usual_day`."""
    copies = {service: postgres.create(template=name) for service, name in postgres_templates.items()}
    business({service: postgres.url(name) for service, name in copies.items()}, usual_day)
    return copies


def inspected(urls: Mapping[str, str], *, settled: bool = False) -> AuditReport:
    return asyncio.run(audit(urls, settled=settled))


def broken(report: AuditReport) -> dict[str, str]:
    """Return the violated invariants with their findings."""
    return {
        invariant.name: "; ".join(f"{finding.subject}: {finding.detail}" for finding in invariant.findings)
        for invariant in report.invariants
        if not invariant.ok
    }


def test_audit_of_valid_data_holds(urls: Mapping[str, str], backend: str) -> None:
    report = inspected(urls)
    assert broken(report) == {}
    assert report.ok
    assert (report.confirmed, report.refused, report.open) == (2, 2, 1)
    assert [invariant.name for invariant in report.invariants] == INVARIANTS + ["storage"] * (backend == "sqlite")
    checked = {invariant.name: invariant.checked for invariant in report.invariants}
    # Four writes per confirmed or refused trip, two for the voided and one for the open trip.
    assert (checked["trips-told"], checked["charges"], checked["keys"]) == (4, 3, 15)


def test_audit_holds_after_purge(urls: Mapping[str, str]) -> None:
    async def purge_all() -> int:
        old = sa.bindparam("old", datetime.now(UTC) - timedelta(days=91), sa.DateTime(timezone=True))
        purged = 0
        async with opened_databases(urls) as databases:
            for service, table, operations in (
                ("flights", "seat_reservations", flights.OPERATIONS),
                ("hotels", "room_reservations", hotels.OPERATIONS),
                ("payments", "charges", payments.OPERATIONS),
            ):
                async with databases[service].transaction() as connection:
                    for each in (operations.table.name, table):
                        await connection.execute(sa.text(f"UPDATE {each} SET created_at = :old").bindparams(old))
                purged += await purge(databases[service], operations, timedelta(days=90))
        return purged

    assert asyncio.run(purge_all()) == 4  # flight, hotel and payment of the refused trip, and the voided flight
    assert broken(inspected(urls)) == {}


def test_holdings_of_open_trip_violate_settled_audit(urls: Mapping[str, str]) -> None:
    report = inspected(urls, settled=True)
    assert broken(report) == {"trips-open": "open: holds 1 seat sets, 0 rooms and 0 charges"}


def test_open_trip_without_holdings_is_settled(urls: Mapping[str, str]) -> None:
    async def give_back(agency: Agency) -> None:
        await agency.cancel_seats("open")

    business(urls, give_back)
    assert inspected(urls, settled=True).ok


def test_duplicate_holdings_of_trip_are_a_violation(urls: Mapping[str, str]) -> None:
    """The data plane's constraints cannot detect a saga that reserves under two keys."""

    async def reserve_twice(agency: Agency) -> None:
        for trip, key in (("confirmed-1", "other-key"), ("open", "other-key-2")):
            flight = (await agency.reserve_seats(trip)).flight
            await agency.seats.reserve(ReserveSeats(key=key, trip_id=trip, flight=flight))

    business(urls, reserve_twice)
    assert broken(inspected(urls)) == {
        "trips-confirmed": "confirmed-1: holds 2 seat sets, 1 rooms and 1 charges",
        "trips-open": "open: holds 2 seat sets, 0 rooms and 0 charges",
    }


def test_contradictory_notifications_are_a_violation(urls: Mapping[str, str]) -> None:
    async def tell(agency: Agency) -> None:
        await agency.notify("confirmed-1", "trip-refused")

    business(urls, tell)
    assert broken(inspected(urls)) == {"trips-told": "confirmed-1: told 1 times trip-confirmed, 1 times trip-refused"}


CHARGED = "transaction_id = (SELECT charge_transaction FROM charges WHERE trip_id = 'confirmed-1')"

# Damage by name: the service, the statement (`:charged` is replaced by CHARGED), the violated invariants and a part of
# their findings.
BREAKS: dict[str, tuple[str, str, dict[str, str]]] = {
    "a seat set is lost": (
        "flights",
        "UPDATE seat_reservations SET status = 'cancelled' WHERE trip_id = 'confirmed-1'",
        {
            "trips-confirmed": "confirmed-1: holds 0 seat sets",
            "inventory": "flight PD100: capacity 100000, left 99997, held 2",
            "keys": "Flights trip:confirmed-1:flight: is performed for trip 'confirmed-1'",
        },
    ),
    "a room is held after a refusal": (
        "hotels",
        "UPDATE room_reservations SET status = 'active' WHERE trip_id = 'refused'",
        {
            "trips-refused": "refused: holds 0 seat sets, 1 rooms",
            "inventory": "hotel Harbour: capacity 100000, left 99998, held 3",
            "keys": "Hotels trip:refused:hotel: is compensated",
        },
    ),
    "a seat is sold that was not there": (
        "flights",
        "UPDATE flights SET seats_left = -1 WHERE number = 'PD404'",
        {"inventory": "flight PD404: capacity 0, left -1, held 0"},
    ),
    "a room has vanished": (
        "hotels",
        "UPDATE hotels SET rooms_left = 39 WHERE name = 'Garden'",
        {"inventory": "hotel Garden: capacity 40, left 39, held 0"},
    ),
    "a posting is changed": (
        "payments",
        "UPDATE ledger_postings SET amount_minor = amount_minor + 1 WHERE account_id = 'acct-ada' AND :charged",
        {
            "ledger-currencies": "EUR: sums to 1 minor units",
            "ledger-transactions": "sum to 1",
            "charges": "the ledger has no matching charge of trip 'confirmed-1'",
            "balances": "acct-ada: holds",
        },
    ),
    "a posting is deleted": (
        "payments",
        "DELETE FROM ledger_postings WHERE account_id = 'merchant-eur' AND :charged",
        {
            "ledger-currencies": "EUR: sums to -50000",
            "ledger-transactions": "1 postings",
            "charges": "no matching charge",
            "balances": "merchant-eur: holds 100000 minor units, its postings sum to 50000",
        },
    ),
    "a transaction is unbalanced, and the currency still sums to zero": (
        "payments",
        """UPDATE ledger_postings SET amount_minor = amount_minor + CASE WHEN :charged THEN 1 ELSE -1 END
            WHERE account_id = 'merchant-eur' AND transaction_id IN
                (SELECT charge_transaction FROM charges WHERE trip_id LIKE 'confirmed-%')""",
        {"ledger-transactions": "sum to -1", "charges": "no matching charge"},
    ),
    "a transaction moves money between currencies": (
        "payments",
        "UPDATE ledger_postings SET account_id = 'merchant-usd' WHERE account_id = 'merchant-eur' AND :charged",
        {
            "ledger-currencies": "USD: sums to 50000",
            "ledger-transactions": "2 postings on 2 accounts in 2 currencies sum to 0",
            "charges": "no matching charge",
            "balances": "merchant-usd: holds 0",
        },
    ),
    "a balance is changed": (
        "payments",
        "UPDATE accounts SET balance_minor = balance_minor + 1 WHERE account_id = 'acct-grace'",
        {"balances": "acct-grace: holds 1000000000001 minor units, its postings sum to 1000000000000"},
    ),
    "a charge is refunded on paper only": (
        "payments",
        "UPDATE charges SET status = 'refunded' WHERE trip_id = 'confirmed-1'",
        {
            "trips-confirmed": "and 0 charges",
            "charges": "is refunded, but the ledger says otherwise",
            "keys": "Payments trip:confirmed-1:payment: is performed",
        },
    ),
    "a refunded charge is charged again on paper": (
        "payments",
        "UPDATE charges SET status = 'charged' WHERE trip_id = 'refused'",
        {
            "trips-refused": "refused: holds 0 seat sets, 0 rooms and 1 charges",
            "charges": "is charged, but the ledger says otherwise",
            "keys": "Payments trip:refused:payment: is compensated",
        },
    ),
    "a charge shows another amount than was taken": (
        "payments",
        "UPDATE charges SET amount_minor = 1 WHERE trip_id = 'confirmed-1'",
        {"charges": "no matching charge of trip 'confirmed-1'"},
    ),
    "a charge is deleted": (
        "payments",
        "DELETE FROM charges WHERE trip_id = 'confirmed-1'",
        {
            "trips-confirmed": "and 0 charges",
            "charges": "a charge that no payment explains",
            "keys": "Payments trip:confirmed-1:payment: is performed, but has 0 rows",
        },
    ),
    "money is taken for another trip": (
        "payments",
        "UPDATE ledger_transactions SET trip_id = 'other' WHERE :charged",
        {"charges": "no matching charge of trip 'confirmed-1'"},
    ),
    "an operation is forgotten": (
        "hotels",
        "DELETE FROM perdure_operations WHERE key = 'trip:confirmed-1:hotel'",
        {"keys": "without an operation"},
    ),
    "the operation of a recent refund is forgotten": (
        "hotels",
        "DELETE FROM perdure_operations WHERE key = 'trip:refused:hotel'",
        {"keys": "without an operation"},
    ),
    "a write acted although it was voided": (
        "flights",
        "UPDATE perdure_operations SET state = 'voided' WHERE key = 'trip:open:flight'",
        {"keys": "Flights trip:open:flight: is voided, but has 1 rows"},
    ),
    "a row belongs to another trip than its operation": (
        "notifications",
        "UPDATE notifications SET trip_id = 'other' WHERE trip_id = 'voided'",
        {"keys": "Notifications trip:voided:trip-refused: is performed for trip 'voided'"},
    ),
    "a notification is lost": (
        "notifications",
        "DELETE FROM notifications WHERE trip_id = 'refused'",
        {"keys": "Notifications trip:refused:trip-refused: is performed, but has 0 rows"},
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_audit_reports_each_kind_of_damage(urls: Mapping[str, str], tamper: Tamper, name: str) -> None:
    service, statement, expected = BREAKS[name]
    tamper(service, statement.replace(":charged", CHARGED))
    found = broken(inspected(urls))
    found.pop("storage", None)  # SQLite's integrity check reports some of the damage too
    assert found.keys() == expected.keys(), found
    for invariant, text in expected.items():
        assert text in found[invariant]


def test_audit_reports_key_used_twice(urls: Mapping[str, str], tamper: Tamper) -> None:
    tamper(
        "flights",
        "DROP INDEX uq_seat_reservations_key",
        "INSERT INTO seat_reservations (reservation_id, key, trip_id, flight, seats, status)"
        " SELECT 'second', key, trip_id, flight, seats, status FROM seat_reservations WHERE trip_id = 'open'",
        "UPDATE flights SET seats_left = seats_left - 1 WHERE number = 'PD100'",
    )
    found = broken(inspected(urls))
    assert found["keys"] == "Flights trip:open:flight: is performed, but has 2 rows"
    assert found["trips-open"] == "open: holds 2 seat sets, 0 rooms and 0 charges"


def test_audit_reports_posting_on_unknown_account(urls: Mapping[str, str], tamper: Tamper, backend: str) -> None:
    tamper("payments", "DELETE FROM accounts WHERE account_id = 'acct-ada'")
    found = broken(inspected(urls))
    assert "2 postings on 1 accounts" in found["ledger-transactions"]
    assert "EUR: sums to" in found["ledger-currencies"]
    if backend == "sqlite":
        assert "names a row of accounts that does not exist" in found["storage"]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_audit_reports_damaged_file(urls: Mapping[str, str], backend: str, tamper: Tamper) -> None:
    tamper(
        "payments",
        "PRAGMA writable_schema = ON",
        # A unique index over duplicate rows, as after a lost write.
        "UPDATE sqlite_schema SET sql = 'CREATE UNIQUE INDEX ix_charges_trip_id ON charges (account_id)'"
        " WHERE name = 'ix_charges_trip_id'",
    )
    assert re.search(r"payments\.db: .*ix_charges_trip_id", broken(inspected(urls))["storage"])


def test_report_serializes_to_json(urls: Mapping[str, str]) -> None:
    report = inspected(urls, settled=True)
    document = report.model_dump(mode="json")
    assert document["ok"] is False
    assert [entry["name"] for entry in document["invariants"] if not entry["ok"]] == ["trips-open"]
    assert AuditReport.model_validate(report.model_dump(exclude_computed_fields=True)) == report


@pytest.mark.parametrize("backend", ["sqlite"])
def test_audit_writes_nothing(urls: Mapping[str, str], backend: str, tmp_path: Path) -> None:
    files = [Path(url.removeprefix("sqlite:///")) for url in urls.values()]
    before = [file.read_bytes() for file in files]
    assert inspected(urls).ok
    assert [file.read_bytes() for file in files] == before
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_missing_database_is_named_and_not_created(tmp_path: Path) -> None:
    missing = tmp_path / "none.db"
    with pytest.raises(ConfigurationError, match=r"there is no database at .*none\.db"):
        inspected({"notifications": f"sqlite:///{missing}"})
    assert not missing.exists()


def test_unmigrated_database_is_named(empty_urls: Mapping[str, str], backend: str, tmp_path: Path) -> None:
    if backend == "sqlite":
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "notifications.db").touch()
    with pytest.raises(ConfigurationError, match=r"lacks the tables approval_notices, .*: run the migrations"):
        inspected(empty_urls)


def test_invalid_database_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("no database at all " * 100)
    with pytest.raises(ConfigurationError, match=r"no\.db cannot be read: .*file is not a database"):
        inspected({"notifications": f"sqlite:///{tmp_path / 'no.db'}"})


def test_unreachable_server_is_named_without_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        inspected({"notifications": f"postgresql://ada:hunter2@/notifications?host={tmp_path}"})
    assert "hunter2" not in str(caught.value)

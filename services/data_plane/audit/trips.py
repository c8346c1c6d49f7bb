"""Invariant of the trips: each one holds what its outcome requires."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstrumentedAttribute

from services.data_plane.audit.report import Invariant, invariant
from services.data_plane.flights.tables import SeatReservationRow
from services.data_plane.hotels.tables import RoomReservationRow
from services.data_plane.notifications.tables import NotificationRow
from services.data_plane.payments.tables import ChargeRow
from services.database import Database

READING_ORDER: Final = ("notifications", "payments", "hotels", "flights")
"""Order in which databases are read: notifications first, since a trip's other rows are written before."""


@dataclass
class Trip:
    """A trip as the databases record it."""

    seat_sets: int = 0
    rooms: int = 0
    charges: int = 0
    told: dict[str, int] = field(default_factory=dict)

    @property
    def holdings(self) -> tuple[int, int, int]:
        """Seat sets, rooms and charges."""
        return self.seat_sets, self.rooms, self.charges

    @property
    def outcome(self) -> str:
        """``confirmed``, ``refused`` or ``open``."""
        if "trip-confirmed" in self.told:
            return "confirmed"
        return "refused" if "trip-refused" in self.told else "open"

    def __str__(self) -> str:
        return f"holds {self.seat_sets} seat sets, {self.rooms} rooms and {self.charges} charges"


@dataclass(frozen=True)
class ConfirmedCharge:
    """Charge of a confirmed trip.

    Args:
        trip_id: The trip.
        account: The account that was charged.
        amount_minor: How much, in minor units.
        charged_at: When.
    """

    trip_id: str
    account: str
    amount_minor: int
    charged_at: datetime


async def load_confirmed(connection: AsyncConnection) -> set[str]:
    """Read the ids of the confirmed trips.

    Args:
        connection: A snapshot of Notifications.
    """
    query = select(NotificationRow.trip_id).where(NotificationRow.kind == "trip-confirmed")
    return set((await connection.execute(query)).scalars())


async def load_charges(connection: AsyncConnection, *, over_minor: int) -> list[ConfirmedCharge]:
    """Read the charges of trips, whether confirmed or not.

    Args:
        connection: A snapshot of Payments.
        over_minor: Only charges above this amount, in minor units.
    """
    query = (
        select(ChargeRow.trip_id, ChargeRow.account_id, ChargeRow.amount_minor, ChargeRow.created_at)
        .where(ChargeRow.amount_minor > over_minor, ChargeRow.status == "charged")
        .order_by(ChargeRow.trip_id)
    )
    return [
        # SQLite stores UTC without a time zone.
        ConfirmedCharge(trip_id, account, amount, at if at.tzinfo else at.replace(tzinfo=UTC))
        for trip_id, account, amount, at in await connection.execute(query)
    ]


async def load(databases: Mapping[str, Database]) -> dict[str, Trip]:
    """Read every trip that the databases know of, by trip id.

    Args:
        databases: Database by service.
    """
    trips: dict[str, Trip] = defaultdict(Trip)
    for service in READING_ORDER:
        async with databases[service].snapshot() as connection:
            await read(connection, service, trips)
    return trips


async def read(connection: AsyncConnection, service: str, trips: dict[str, Trip]) -> None:
    """Read what one service knows of trips.

    Args:
        connection: A snapshot of the service's database.
        service: Name of the service.
        trips: Trips by id; receives the findings.
    """
    if service == "notifications":
        told = select(NotificationRow.trip_id, NotificationRow.kind, func.count()).group_by(
            NotificationRow.trip_id, NotificationRow.kind
        )
        for trip, kind, count in await connection.execute(told):
            trips[trip].told[kind] = count
        return
    holdings: dict[str, tuple[str, InstrumentedAttribute[str], InstrumentedAttribute[str], str]] = {
        "flights": ("seat_sets", SeatReservationRow.trip_id, SeatReservationRow.status, "active"),
        "hotels": ("rooms", RoomReservationRow.trip_id, RoomReservationRow.status, "active"),
        "payments": ("charges", ChargeRow.trip_id, ChargeRow.status, "charged"),
    }
    name, trip_id, status, held = holdings[service]
    # Includes trips whose reservations were all cancelled.
    query = select(trip_id, func.count().filter(status == held)).group_by(trip_id)
    for trip, count in await connection.execute(query):
        setattr(trips[trip], name, count)


def check(trips: Mapping[str, Trip], *, settled: bool) -> list[Invariant]:
    """Check all trips; see `services.data_plane.audit.audit` for ``settled``."""
    by_outcome: dict[str, dict[str, Trip]] = {"confirmed": {}, "refused": {}, "open": {}}
    for trip_id, trip in trips.items():
        by_outcome[trip.outcome][trip_id] = trip
    most = 0 if settled else 1
    return [
        invariant(
            "trips-confirmed",
            "each confirmed trip holds exactly one seat set, one room and one charge",
            len(by_outcome["confirmed"]),
            ((trip_id, str(trip)) for trip_id, trip in by_outcome["confirmed"].items() if trip.holdings != (1, 1, 1)),
        ),
        invariant(
            "trips-refused",
            "each refused trip holds nothing",
            len(by_outcome["refused"]),
            ((trip_id, str(trip)) for trip_id, trip in by_outcome["refused"].items() if any(trip.holdings)),
        ),
        invariant(
            "trips-open",
            "each trip without an outcome holds nothing"
            if settled
            else "each trip without an outcome holds at most one of each",
            len(by_outcome["open"]),
            ((trip_id, str(trip)) for trip_id, trip in by_outcome["open"].items() if max(trip.holdings) > most),
        ),
        invariant(
            "trips-told",
            "each traveller is notified of one outcome, once",
            sum(1 for trip in trips.values() if trip.told),
            (
                (trip_id, "told " + ", ".join(f"{count} times {kind}" for kind, count in sorted(trip.told.items())))
                for trip_id, trip in trips.items()
                if sum(trip.told.values()) > 1
            ),
        ),
    ]

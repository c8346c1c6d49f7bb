"""Invariant of the keys: the idempotency tables match the business rows, and no key took effect twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.sql.idempotency import MINIMUM_RETENTION
from services.data_plane.audit.report import Invariant, invariant
from services.data_plane.flights import tables as flights
from services.data_plane.flights.tables import SeatReservationRow
from services.data_plane.hotels import tables as hotels
from services.data_plane.hotels.tables import RoomReservationRow
from services.data_plane.notifications import tables as notifications
from services.data_plane.notifications.tables import NotificationRow
from services.data_plane.payments import tables as payments
from services.data_plane.payments.tables import ChargeRow


class _Row(NamedTuple):
    """A business row, with the state that its operation must be in."""

    row_id: str
    trip_id: str
    state: str
    created_at: datetime

    def may_be_purged(self, now: datetime) -> bool:
        """Return whether the operation of the row may have been purged."""
        created_at = self.created_at if self.created_at.tzinfo else self.created_at.replace(tzinfo=UTC)
        return self.state == "compensated" and created_at < now - MINIMUM_RETENTION


class Operations(NamedTuple):
    """The idempotency table of a service, compared with its business rows."""

    checked: int
    violations: list[tuple[str, str]]


_STATES: Final = {"active": "performed", "charged": "performed", "cancelled": "compensated", "refunded": "compensated"}


def _rows(id_: Any, table: Any, status: Any) -> Select[Any, Any, Any, Any, Any]:
    return select(table.key, id_, table.trip_id, status, table.created_at)


_SERVICES: Final[dict[str, tuple[Any, Select[Any, Any, Any, Any, Any]]]] = {
    "flights": (
        flights.OPERATIONS.table,
        _rows(SeatReservationRow.reservation_id, SeatReservationRow, SeatReservationRow.status),
    ),
    "hotels": (
        hotels.OPERATIONS.table,
        _rows(RoomReservationRow.reservation_id, RoomReservationRow, RoomReservationRow.status),
    ),
    "payments": (payments.OPERATIONS.table, _rows(ChargeRow.payment_id, ChargeRow, ChargeRow.status)),
    "notifications": (
        notifications.OPERATIONS.table,
        _rows(NotificationRow.notification_id, NotificationRow, literal("performed")),
    ),
}
"""The idempotency table and the business rows by service."""


async def read(connection: AsyncConnection, service: str) -> Operations:
    """Compare each operation of a service with the rows under its key."""
    table, query = _SERVICES[service]
    name = service.capitalize()
    rows: dict[str, list[_Row]] = defaultdict(list)
    for key, row_id, trip_id, status, created_at in await connection.execute(query):
        state: str = _STATES.get(str(status), str(status))
        rows[key].append(_Row(row_id, trip_id, state, created_at))
    operations = list(await connection.execute(select(table.c.key, table.c.subject, table.c.state)))
    violations: list[tuple[str, str]] = []
    for key, trip_id, state in operations:
        done = rows.pop(key, [])
        expected = 0 if state == "voided" else 1
        if len(done) != expected:
            violations.append((f"{name} {key}", f"is {state}, but has {len(done)} rows"))
        violations += [
            (
                f"{name} {key}",
                f"is {state} for trip '{trip_id}', but {row.row_id} says {row.state} for '{row.trip_id}'",
            )
            for row in done
            if (row.state, row.trip_id) != (state, trip_id)
        ]
    now = datetime.now(UTC)
    violations += [
        (f"{name} {key}", f"{', '.join(row.row_id for row in done)} without an operation")
        for key, done in rows.items()
        if not (len(done) == 1 and done[0].may_be_purged(now))
    ]
    return Operations(len(operations), violations)


def check(services: Sequence[Operations]) -> Invariant:
    """Report on the operations of all services."""
    return invariant(
        "keys",
        "each key took effect at most once, as the idempotency table records it",
        sum(each.checked for each in services),
        [violation for each in services for violation in each.violations],
    )

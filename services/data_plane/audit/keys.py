"""Invariant of the keys: the idempotency table matches the business rows, and no key took effect twice."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.audit.report import Invariant, invariant
from services.data_plane.settings import SHORTEST_RETENTION
from services.data_plane.tables import (
    ChargeRow,
    NotificationRow,
    OperationRow,
    RoomReservationRow,
    SeatReservationRow,
)


class _Row(NamedTuple):
    """A business row, with the state that its operation must be in."""

    row_id: str
    trip_id: str
    state: str
    created_at: datetime

    def may_be_purged(self, now: datetime) -> bool:
        """Return whether the operation of the row may have been purged."""
        created_at = self.created_at if self.created_at.tzinfo else self.created_at.replace(tzinfo=UTC)
        return self.state == "compensated" and created_at < now - SHORTEST_RETENTION


_STATES = {"active": "performed", "charged": "performed", "cancelled": "compensated", "refunded": "compensated"}


async def check(connection: AsyncConnection) -> Invariant:
    """Compare each operation with the rows under its key."""
    queries: dict[str, Select[str, str, str, str, datetime]] = {
        "Flights": select(
            SeatReservationRow.key,
            SeatReservationRow.reservation_id,
            SeatReservationRow.trip_id,
            SeatReservationRow.status,
            SeatReservationRow.created_at,
        ),
        "Hotels": select(
            RoomReservationRow.key,
            RoomReservationRow.reservation_id,
            RoomReservationRow.trip_id,
            RoomReservationRow.status,
            RoomReservationRow.created_at,
        ),
        "Payments": select(
            ChargeRow.key, ChargeRow.payment_id, ChargeRow.trip_id, ChargeRow.status, ChargeRow.created_at
        ),
    }
    rows: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for service, query in queries.items():
        for key, row_id, trip_id, status, created_at in await connection.execute(query):
            rows[service, key].append(_Row(row_id, trip_id, _STATES.get(status, status), created_at))
    sent = select(
        NotificationRow.key, NotificationRow.notification_id, NotificationRow.trip_id, NotificationRow.created_at
    )
    for key, row_id, trip_id, created_at in await connection.execute(sent):
        rows["Notifications", key].append(_Row(row_id, trip_id, "performed", created_at))

    operations = list(
        await connection.execute(
            select(OperationRow.service, OperationRow.key, OperationRow.trip_id, OperationRow.state).where(
                OperationRow.service.in_([*queries, "Notifications"])
            )
        )
    )
    violations: list[tuple[str, str]] = []
    for service, key, trip_id, state in operations:
        done = rows.pop((service, key), [])
        expected = 0 if state == "voided" else 1
        if len(done) != expected:
            violations.append((f"{service} {key}", f"is {state}, but has {len(done)} rows"))
        violations += [
            (
                f"{service} {key}",
                f"is {state} for trip '{trip_id}', but {row.row_id} says {row.state} for '{row.trip_id}'",
            )
            for row in done
            if (row.state, row.trip_id) != (state, trip_id)
        ]
    now = datetime.now(UTC)
    violations += [
        (f"{service} {key}", f"{', '.join(row.row_id for row in done)} without an operation")
        for (service, key), done in rows.items()
        if not (len(done) == 1 and done[0].may_be_purged(now))
    ]
    return invariant(
        "keys", "each key took effect at most once, as the idempotency table records it", len(operations), violations
    )

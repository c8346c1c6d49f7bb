"""Observes the state of a platform for the ledger: trips in the engine and in the database."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import select

from perdure.engine.admin import AdminClient, sql_text
from services.data_plane.database import Database
from services.data_plane.tables import ChargeRow, NotificationRow, RoomReservationRow, SeatReservationRow
from tests.system.chaos.ledger import Observed


async def observe(admin: AdminClient, database_url: str, prefix: str) -> Observed:
    """Observe all trips whose ID starts with a prefix.

    Args:
        admin: Client of the engine.
        database_url: The database.
        prefix: The prefix.

    Raises:
        EngineError: The engine does not answer.
        sqlalchemy.exc.SQLAlchemyError: The database does not answer.
    """
    rows = await admin.query(
        "select id, target_service_key as trip, completion_result as result from sys_invocation_status "
        "where target_service_name = 'Trips' and target_handler_name = 'run' "
        f"and starts_with(target_service_key, {sql_text(prefix)})"
    )
    invocations = {row["trip"]: (row["id"], row.get("result")) for row in rows}
    holdings: dict[str, set[str]] = defaultdict(set)
    notices: dict[str, list[str]] = defaultdict(list)
    queries = (
        select(SeatReservationRow.trip_id, SeatReservationRow.reservation_id).where(
            SeatReservationRow.status == "active"
        ),
        select(RoomReservationRow.trip_id, RoomReservationRow.reservation_id).where(
            RoomReservationRow.status == "active"
        ),
        select(ChargeRow.trip_id, ChargeRow.payment_id).where(ChargeRow.status == "charged"),
    )
    database = Database(database_url)
    try:
        async with database.snapshot() as connection:
            for query in queries:
                for trip, held in await connection.execute(query):
                    holdings[trip].add(held)
            for trip, kind in await connection.execute(select(NotificationRow.trip_id, NotificationRow.kind)):
                notices[trip].append(kind)
    finally:
        await database.dispose()
    return Observed(
        invocations=invocations,
        holdings={trip: frozenset(held) for trip, held in holdings.items() if trip.startswith(prefix)},
        notices={trip: kinds for trip, kinds in notices.items() if trip.startswith(prefix)},
    )

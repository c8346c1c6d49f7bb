"""Observes the state of a platform for the ledger: trips in the engine and in the databases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from sqlalchemy import select

from perdure.engine.admin import AdminClient, sql_text
from services.data_plane.flights.tables import SeatReservationRow
from services.data_plane.hotels.tables import RoomReservationRow
from services.data_plane.notifications.tables import NotificationRow
from services.data_plane.payments.tables import ChargeRow
from tests.system.chaos.ledger import Observed
from tests.system.scenarios.databases import opened_databases


async def observe(admin: AdminClient, urls: Mapping[str, str], prefix: str) -> Observed:
    """Observe all trips whose ID starts with a prefix.

    Args:
        admin: Client of the engine.
        urls: Database URL by service.
        prefix: The prefix.

    Raises:
        EngineError: The engine does not answer.
        sqlalchemy.exc.SQLAlchemyError: A database does not answer.
    """
    rows = await admin.query(
        "select id, target_service_key as trip, completion_result as result from sys_invocation_status "
        "where target_service_name = 'Trips' and target_handler_name = 'run' "
        f"and starts_with(target_service_key, {sql_text(prefix)})"
    )
    invocations = {row["trip"]: (row["id"], row.get("result")) for row in rows}
    holdings: dict[str, set[str]] = defaultdict(set)
    notices: dict[str, list[str]] = defaultdict(list)
    queries = {
        "flights": select(SeatReservationRow.trip_id, SeatReservationRow.reservation_id).where(
            SeatReservationRow.status == "active"
        ),
        "hotels": select(RoomReservationRow.trip_id, RoomReservationRow.reservation_id).where(
            RoomReservationRow.status == "active"
        ),
        "payments": select(ChargeRow.trip_id, ChargeRow.payment_id).where(ChargeRow.status == "charged"),
    }
    async with opened_databases(urls) as databases:
        for service, query in queries.items():
            async with databases[service].snapshot() as connection:
                for trip, held in await connection.execute(query):
                    holdings[trip].add(held)
        async with databases["notifications"].snapshot() as connection:
            for trip, kind in await connection.execute(select(NotificationRow.trip_id, NotificationRow.kind)):
                notices[trip].append(kind)
    return Observed(
        invocations=invocations,
        holdings={trip: frozenset(held) for trip, held in holdings.items() if trip.startswith(prefix)},
        notices={trip: kinds for trip, kinds in notices.items() if trip.startswith(prefix)},
    )

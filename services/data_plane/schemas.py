"""The schemas of all services, for migrations and the audit. A service's process imports only its own tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.flights import tables as flights
from services.data_plane.flights.demo import insert_demo_data as insert_flights
from services.data_plane.hotels import tables as hotels
from services.data_plane.hotels.demo import insert_demo_data as insert_hotels
from services.data_plane.notifications import tables as notifications
from services.data_plane.payments import tables as payments
from services.data_plane.payments.demo import insert_demo_data as insert_accounts


async def _nothing(_connection: AsyncConnection) -> None:
    """Notifications has no demo data."""


@dataclass(frozen=True)
class Schema:
    """Schema of one service.

    Args:
        metadata: The tables.
        insert_demo_data: Inserts missing demo data in a transaction.
    """

    metadata: MetaData
    insert_demo_data: Callable[[AsyncConnection], Awaitable[None]] = _nothing


SCHEMAS: Final[Mapping[str, Schema]] = {
    "flights": Schema(flights.Base.metadata, insert_flights),
    "hotels": Schema(hotels.Base.metadata, insert_hotels),
    "payments": Schema(payments.Base.metadata, insert_accounts),
    "notifications": Schema(notifications.Base.metadata),
}
"""Schema by service."""

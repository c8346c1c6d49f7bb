"""Demo data of Hotels, with faults to try.

hotel     rooms     answers  cancels
Harbour   100,000   at once  always
Garden    40        at once  always
Attic     0         at once  (full)
Sloth     100,000   in 2 s   always
Stumble   100,000   at once  after two failed cancellations
Fortress  100,000   at once  never: every cancellation fails
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.hotels.tables import HotelRow
from services.data_plane.tables import insert_if_missing


class Hotel(NamedTuple):
    """A hotel and its faults."""

    rooms: int
    latency_ms: int = 0
    fails_cancellations: int = 0


HOTELS: Final = {
    "Harbour": Hotel(rooms=100_000),
    "Garden": Hotel(rooms=40),
    "Attic": Hotel(rooms=0),
    "Sloth": Hotel(rooms=100_000, latency_ms=2_000),
    "Stumble": Hotel(rooms=100_000, fails_cancellations=2),
    "Fortress": Hotel(rooms=100_000, fails_cancellations=-1),
}


async def insert_demo_data(connection: AsyncConnection) -> None:
    """Insert missing hotels. Existing ones stay unchanged.

    Args:
        connection: An open transaction on a migrated database.
    """
    for name, hotel in HOTELS.items():
        await insert_if_missing(connection, HotelRow, name=name, rooms_left=hotel.rooms, **hotel._asdict())

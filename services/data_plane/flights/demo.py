"""Demo data of Flights.

flight    seats
PD100     100,000   plenty
PD200     180       an ordinary flight
PD001     1         the last seat, for two trips to race for
PD404     0         sold out
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.flights.tables import FlightRow
from services.data_plane.tables import insert_if_missing

FLIGHTS: Final = {"PD100": 100_000, "PD200": 180, "PD001": 1, "PD404": 0}
"""Seats by flight."""


async def insert_demo_data(connection: AsyncConnection) -> None:
    """Insert missing flights. Existing ones stay unchanged.

    Args:
        connection: An open transaction on a migrated database.
    """
    for number, seats in FLIGHTS.items():
        await insert_if_missing(connection, FlightRow, number=number, seats=seats, seats_left=seats)

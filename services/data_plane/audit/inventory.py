"""Invariant of the inventory: free and held units add up to the capacity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Select, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.audit.report import Invariant, invariant
from services.data_plane.flights.tables import FlightRow, SeatReservationRow
from services.data_plane.hotels.tables import HotelRow, RoomReservationRow


class Stock(NamedTuple):
    """Units of a flight or hotel."""

    name: str
    capacity: int
    left: int
    held: int


_QUERIES: Final[dict[str, tuple[str, Select[str, int, int, int]]]] = {
    "flights": (
        "flight",
        select(
            FlightRow.number,
            FlightRow.seats,
            FlightRow.seats_left,
            func.coalesce(func.sum(SeatReservationRow.seats), 0),
        )
        .outerjoin(
            SeatReservationRow,
            and_(SeatReservationRow.flight == FlightRow.number, SeatReservationRow.status == "active"),
        )
        .group_by(FlightRow.number),
    ),
    "hotels": (
        "hotel",
        select(HotelRow.name, HotelRow.rooms, HotelRow.rooms_left, func.count(RoomReservationRow.reservation_id))
        .outerjoin(
            RoomReservationRow, and_(RoomReservationRow.hotel == HotelRow.name, RoomReservationRow.status == "active")
        )
        .group_by(HotelRow.name),
    ),
}


async def read(connection: AsyncConnection, service: str) -> list[Stock]:
    """Read the stocks of a service, none for a service without inventory."""
    if service not in _QUERIES:
        return []
    kind, query = _QUERIES[service]
    return [Stock(f"{kind} {row[0]}", row[1], row[2], int(row[3])) for row in await connection.execute(query)]


def check(stocks: Sequence[Stock]) -> Invariant:
    """Count flights and hotels."""
    return invariant(
        "inventory",
        "free and held units add up to the capacity of each flight and hotel, and none is negative",
        len(stocks),
        (
            (stock.name, f"capacity {stock.capacity}, left {stock.left}, held {stock.held}")
            for stock in sorted(stocks)
            if stock.capacity != stock.left + stock.held or min(stock.left, stock.held) < 0
        ),
    )

"""Invariant of the inventory: free and held units add up to the capacity."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.audit.report import Invariant, invariant
from services.data_plane.tables import FlightRow, HotelRow, RoomReservationRow, SeatReservationRow


class _Stock(NamedTuple):
    name: str
    capacity: int
    left: int
    held: int


async def check(connection: AsyncConnection) -> Invariant:
    """Count flights and hotels."""
    seats = (
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
        .group_by(FlightRow.number)
    )
    rooms = (
        select(HotelRow.name, HotelRow.rooms, HotelRow.rooms_left, func.count(RoomReservationRow.reservation_id))
        .outerjoin(
            RoomReservationRow, and_(RoomReservationRow.hotel == HotelRow.name, RoomReservationRow.status == "active")
        )
        .group_by(HotelRow.name)
    )
    stocks = [
        _Stock(f"{kind} {row[0]}", row[1], row[2], int(row[3]))
        for kind, query in (("flight", seats), ("hotel", rooms))
        for row in await connection.execute(query)
    ]
    return invariant(
        "inventory",
        "free and held units add up to the capacity of each flight and hotel, and none is negative",
        len(stocks),
        (
            (stock.name, f"capacity {stock.capacity}, left {stock.left}, held {stock.held}")
            for stock in stocks
            if stock.capacity != stock.left + stock.held or min(stock.left, stock.held) < 0
        ),
    )

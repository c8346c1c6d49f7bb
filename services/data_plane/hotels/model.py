"""Room reservations in hotels."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.errors import NotFound, PerdureTerminalError, Refused
from services.contracts.hotels import CancelRoom, HotelRequest, ReserveRoom, RoomCancellation, RoomReservation
from services.data_plane.hotels.tables import OPERATIONS, HotelRow, RoomReservationRow
from services.database import Database


class Rooms:
    """Reserve rooms and release them.

    Args:
        database: The database of Hotels.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(self, request: ReserveRoom) -> RoomReservation:
        """Reserve a room for a trip, after the latency of the hotel.

        Args:
            request: Trip, hotel, nights and key.

        Raises:
            NotFound: The hotel does not exist.
            Refused: ``hotel_full``: no room is left.
            Conflict: See `perdure.sql.IdempotencyTable.perform`.
        """

        async def take() -> RoomReservation:
            # One conditional update, so that two concurrent trips cannot both take the last room.
            taken = await connection.execute(
                update(HotelRow)
                .where(HotelRow.name == request.hotel.name, HotelRow.rooms_left >= 1)
                .values(rooms_left=HotelRow.rooms_left - 1)
            )
            if taken.rowcount == 0:
                raise await _refusal(connection, request.hotel)
            reservation = RoomReservation(
                reservation_id=f"room-{uuid4()}", trip_id=request.trip_id, hotel=request.hotel
            )
            await connection.execute(
                insert(RoomReservationRow).values(
                    reservation_id=reservation.reservation_id,
                    key=request.key,
                    trip_id=request.trip_id,
                    hotel=request.hotel.name,
                    nights=request.hotel.nights,
                )
            )
            return reservation

        # Before the transaction, so that a slow hotel holds no lock.
        await self._hotel_answers(request.hotel.name)
        async with self._database.transaction() as connection:
            return await OPERATIONS.perform(
                connection,
                request.key,
                take,
                action="reserve",
                request=request,
                result=RoomReservation,
                subject=request.trip_id,
            )

    async def cancel(self, request: CancelRoom) -> RoomCancellation:
        """Release the room reserved under a key, or void the key.

        Args:
            request: Trip and key of the reservation.

        Raises:
            Refused: ``cancellation_failed``: the hotel is marked as failing; the room is still held.
            Conflict: See `perdure.sql.IdempotencyTable.compensate`.
        """

        async def release(reservation: RoomReservation) -> RoomCancellation:
            await connection.execute(
                update(RoomReservationRow)
                .where(RoomReservationRow.reservation_id == reservation.reservation_id)
                .values(status="cancelled")
            )
            await connection.execute(
                update(HotelRow)
                .where(HotelRow.name == reservation.hotel.name)
                .values(rooms_left=HotelRow.rooms_left + 1)
            )
            return RoomCancellation(key=request.key, outcome="cancelled", reservation_id=reservation.reservation_id)

        await self._hotel_cancels(request.key)
        voided = RoomCancellation(key=request.key, outcome="voided")
        async with self._database.transaction() as connection:
            return await OPERATIONS.compensate(
                connection,
                request.key,
                release,
                action="reserve",
                request=request,
                performed=RoomReservation,
                voided=voided,
                subject=request.trip_id,
            )

    async def _hotel_answers(self, name: str) -> None:
        async with self._database.snapshot() as connection:
            query = select(HotelRow.latency_ms).where(HotelRow.name == name)
            latency_ms = (await connection.execute(query)).scalar_one_or_none()
        if latency_ms:
            await asyncio.sleep(latency_ms / 1000)

    async def _hotel_cancels(self, key: str) -> None:
        """Raise the hotel's configured cancellation fault, and count it."""
        async with self._database.snapshot() as connection:
            query = (
                select(HotelRow.name, HotelRow.fails_cancellations)
                .join(RoomReservationRow, RoomReservationRow.hotel == HotelRow.name)
                .where(RoomReservationRow.key == key, RoomReservationRow.status == "active")
            )
            hotel = (await connection.execute(query)).one_or_none()
        if hotel is None or hotel.fails_cancellations == 0:
            return
        if hotel.fails_cancellations > 0:
            # In a separate transaction, so the count survives the failed cancellation.
            async with self._database.transaction() as connection:
                counted = await connection.execute(
                    update(HotelRow)
                    .where(HotelRow.name == hotel.name, HotelRow.fails_cancellations > 0)
                    .values(fails_cancellations=HotelRow.fails_cancellations - 1)
                )
            if counted.rowcount == 0:
                return
        raise Refused(f"hotel '{hotel.name}' failed to cancel the room; it is still held", 503, "cancellation_failed")


async def _refusal(connection: AsyncConnection, wanted: HotelRequest) -> PerdureTerminalError:
    """Return the error for a hotel without a free room."""
    known = (await connection.execute(select(HotelRow.name).where(HotelRow.name == wanted.name))).first()
    if known is None:
        return NotFound(f"hotel.name: there is no hotel '{wanted.name}'", metadata={"field": "hotel.name"})
    return Refused(f"hotel '{wanted.name}' has no room left", 409, "hotel_full")

"""Seats: an inventory of flights, and who holds how many of their seats."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.errors import NotFound, PerdureTerminalError, Refused
from services.contracts.flights import CancelSeats, ReserveSeats, SeatCancellation, SeatReservation
from services.data_plane.database import Database
from services.data_plane.flights.tables import FlightRow, SeatReservationRow
from services.data_plane.idempotency import IdempotencyTable


class Seats:
    """Reserve seats and give them back.

    Args:
        database: Where flights and reservations are kept.
    """

    def __init__(self, database: Database) -> None:
        self._operations = IdempotencyTable(database, "Flights")

    async def reserve(self, request: ReserveSeats) -> SeatReservation:
        """Hold seats for a trip.

        Args:
            request: Trip, flight and seats, under the caller's key.

        Raises:
            NotFound: No such flight.
            Refused: ``seats_sold_out``: fewer seats are left than the trip wants.
            Conflict: See `IdempotencyTable.perform`.
        """

        async def take(connection: AsyncConnection) -> SeatReservation:
            wanted = request.flight
            # One conditional update, so that two trips that race for the last seat can't both find it free.
            taken = await connection.execute(
                update(FlightRow)
                .where(FlightRow.number == wanted.number, FlightRow.seats_left >= wanted.seats)
                .values(seats_left=FlightRow.seats_left - wanted.seats)
            )
            if taken.rowcount == 0:
                raise await _refusal(connection, request)
            reservation = SeatReservation(reservation_id=f"seat-{uuid4()}", trip_id=request.trip_id, flight=wanted)
            await connection.execute(
                insert(SeatReservationRow).values(
                    reservation_id=reservation.reservation_id,
                    key=request.key,
                    trip_id=request.trip_id,
                    flight=wanted.number,
                    seats=wanted.seats,
                )
            )
            return reservation

        return await self._operations.perform("reserve", request, take, SeatReservation)

    async def cancel(self, request: CancelSeats) -> SeatCancellation:
        """Give the seats back that were reserved under this key, or see to it that they never will be.

        Args:
            request: Trip, and the key of its reservation.

        Raises:
            Conflict: See `IdempotencyTable.compensate`.
        """

        async def give_back(connection: AsyncConnection, reservation: SeatReservation) -> SeatCancellation:
            await connection.execute(
                update(SeatReservationRow)
                .where(SeatReservationRow.reservation_id == reservation.reservation_id)
                .values(status="cancelled")
            )
            await connection.execute(
                update(FlightRow)
                .where(FlightRow.number == reservation.flight.number)
                .values(seats_left=FlightRow.seats_left + reservation.flight.seats)
            )
            return SeatCancellation(key=request.key, outcome="cancelled", reservation_id=reservation.reservation_id)

        voided = SeatCancellation(key=request.key, outcome="voided")
        return await self._operations.compensate("reserve", request, give_back, SeatReservation, voided)


async def _refusal(connection: AsyncConnection, request: ReserveSeats) -> PerdureTerminalError:
    """Say why a flight gave no seats."""
    wanted = request.flight
    left = (
        await connection.execute(select(FlightRow.seats_left).where(FlightRow.number == wanted.number))
    ).scalar_one_or_none()
    if left is None:
        return NotFound(f"flight.number: there is no flight '{wanted.number}'", metadata={"field": "flight.number"})
    return Refused(
        f"flight '{wanted.number}' has {left} seats left, and the trip wants {wanted.seats}", 409, "seats_sold_out"
    )

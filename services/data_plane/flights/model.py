"""Seat reservations on flights."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.errors import NotFound, PerdureTerminalError, Refused
from services.contracts.flights import CancelSeats, ReserveSeats, SeatCancellation, SeatReservation
from services.data_plane.flights.tables import OPERATIONS, FlightRow, SeatReservationRow
from services.database import Database


class Seats:
    """Reserve seats and release them.

    Args:
        database: The database of Flights.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(self, request: ReserveSeats) -> SeatReservation:
        """Reserve seats for a trip.

        Args:
            request: Trip, flight, seats and key.

        Raises:
            NotFound: The flight does not exist.
            Refused: ``seats_sold_out``: the flight has fewer free seats.
            Conflict: See `perdure.sql.IdempotencyTable.perform`.
        """

        async def take() -> SeatReservation:
            wanted = request.flight
            # One conditional update, so that two concurrent trips cannot both take the last seat.
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

        async with self._database.transaction() as connection:
            return await OPERATIONS.perform(
                connection,
                request.key,
                take,
                action="reserve",
                request=request,
                result=SeatReservation,
                subject=request.trip_id,
            )

    async def cancel(self, request: CancelSeats) -> SeatCancellation:
        """Release the seats reserved under a key, or void the key.

        Args:
            request: Trip and key of the reservation.

        Raises:
            Conflict: See `perdure.sql.IdempotencyTable.compensate`.
        """

        async def release(reservation: SeatReservation) -> SeatCancellation:
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
        async with self._database.transaction() as connection:
            return await OPERATIONS.compensate(
                connection,
                request.key,
                release,
                action="reserve",
                request=request,
                performed=SeatReservation,
                voided=voided,
                subject=request.trip_id,
            )


async def _refusal(connection: AsyncConnection, request: ReserveSeats) -> PerdureTerminalError:
    """Return the error for a flight without enough free seats."""
    wanted = request.flight
    left = (
        await connection.execute(select(FlightRow.seats_left).where(FlightRow.number == wanted.number))
    ).scalar_one_or_none()
    if left is None:
        return NotFound(f"flight.number: there is no flight '{wanted.number}'", metadata={"field": "flight.number"})
    return Refused(
        f"flight '{wanted.number}' has {left} seats left, but the trip needs {wanted.seats}", 409, "seats_sold_out"
    )

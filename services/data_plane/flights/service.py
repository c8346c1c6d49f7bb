"""Flights: the handlers and the process that serves them."""

from __future__ import annotations

from perdure import DataPlaneContext, DataPlaneService
from services.contracts.flights import CancelSeats, ReserveSeats, SeatCancellation, SeatReservation
from services.data_plane.flights.model import Seats
from services.data_plane.flights.settings import FlightsSettings
from services.data_plane.flights.tables import OPERATIONS
from services.data_plane.process import serve_data_plane
from services.data_plane.retries import WRITES
from services.database import Database


def define(seats: Seats) -> DataPlaneService:
    """Define the service.

    Args:
        seats: The business logic.
    """
    service = DataPlaneService("Flights", run=WRITES)

    @service.handler()
    async def reserve(ctx: DataPlaneContext, request: ReserveSeats) -> SeatReservation:
        """Reserve seats."""
        return await ctx.run("reserve", seats.reserve, request)

    @service.handler()
    async def cancel(ctx: DataPlaneContext, request: CancelSeats) -> SeatCancellation:
        """Release seats."""
        return await ctx.run("cancel", seats.cancel, request)

    return service


def build(database: Database) -> DataPlaneService:
    """Define the service on a database."""
    return define(Seats(database))


def main() -> int:
    """Serve until SIGTERM, and return the exit code."""
    return serve_data_plane(FlightsSettings, build, OPERATIONS)

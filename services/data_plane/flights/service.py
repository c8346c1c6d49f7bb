"""The handlers of Flights: a thin layer that puts each change into a run."""

from __future__ import annotations

from perdure import DataPlaneContext, DataPlaneService
from services.contracts.flights import CancelSeats, ReserveSeats, SeatCancellation, SeatReservation
from services.data_plane.flights.model import Seats
from services.data_plane.retries import WRITES


def define(seats: Seats) -> DataPlaneService:
    """Define the service.

    Args:
        seats: The business behind it.
    """
    service = DataPlaneService("Flights", run=WRITES)

    @service.handler()
    async def reserve(ctx: DataPlaneContext, request: ReserveSeats) -> SeatReservation:
        """Hold seats for a trip."""
        return await ctx.run("reserve", seats.reserve, request)

    @service.handler()
    async def cancel(ctx: DataPlaneContext, request: CancelSeats) -> SeatCancellation:
        """Give seats back."""
        return await ctx.run("cancel", seats.cancel, request)

    return service

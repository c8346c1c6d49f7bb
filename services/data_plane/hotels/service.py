"""Hotels: the handlers and the process that serves them."""

from __future__ import annotations

from perdure import DataPlaneContext, DataPlaneService
from services.contracts.hotels import CancelRoom, ReserveRoom, RoomCancellation, RoomReservation
from services.data_plane.hotels.model import Rooms
from services.data_plane.hotels.settings import HotelsSettings
from services.data_plane.hotels.tables import OPERATIONS
from services.data_plane.process import serve_data_plane
from services.data_plane.retries import WRITES
from services.database import Database


def define(rooms: Rooms) -> DataPlaneService:
    """Define the service.

    Args:
        rooms: The business logic.
    """
    service = DataPlaneService("Hotels", run=WRITES)

    @service.handler()
    async def reserve(ctx: DataPlaneContext, request: ReserveRoom) -> RoomReservation:
        """Reserve a room."""
        return await ctx.run("reserve", rooms.reserve, request)

    @service.handler()
    async def cancel(ctx: DataPlaneContext, request: CancelRoom) -> RoomCancellation:
        """Release a room."""
        return await ctx.run("cancel", rooms.cancel, request)

    return service


def build(database: Database) -> DataPlaneService:
    """Define the service on a database."""
    return define(Rooms(database))


def main() -> int:
    """Serve until SIGTERM, and return the exit code."""
    return serve_data_plane(HotelsSettings, build, OPERATIONS)

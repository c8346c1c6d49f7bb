"""A saga that books a trip."""

from __future__ import annotations

from examples.s09_sagas.world import Booking, BookingRequest, desk
from perdure import ControlPlaneService, DataPlaneContext, DataPlaneService, Orchestration

# The data plane.
agency = DataPlaneService("Agency")


@agency.handler()
async def reserve(ctx: DataPlaneContext, booking: Booking) -> str:
    """Book something."""
    return await ctx.run("book", desk.book, booking)


@agency.handler()
async def release(ctx: DataPlaneContext, booking: Booking) -> None:
    """Cancel a booking."""
    await ctx.run("cancel", desk.cancel, booking)


# The control plane.
journeys = ControlPlaneService("Journeys", idempotency_prefix="journey")


@journeys.main(steps=2)
async def book(cp: Orchestration, request: BookingRequest) -> list[str]:
    """Book flight and hotel. Each step records its compensation before its action."""
    flight = Booking(trip=cp.key, name=request.flight)
    hotel = Booking(trip=cp.key, name=request.hotel)
    return [
        await cp.step("flight", reserve, flight, compensate=release),
        await cp.step("hotel", reserve, hotel, compensate=release),
    ]

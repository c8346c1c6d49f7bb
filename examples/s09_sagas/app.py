"""A saga that books a trip."""

from __future__ import annotations

import restate

from examples.s09_sagas.world import Booking, BookingRequest, desk
from perdure import ControlPlaneService, DataPlaneContext, DataPlaneService, Orchestration, ServiceClient, Target

# The data plane, in its own process: the control plane knows names and types only.
agency = DataPlaneService("Agency")


@agency.handler()
async def reserve(ctx: DataPlaneContext, booking: Booking) -> str:
    """Book something."""
    return await ctx.run("book", desk.book, booking)


@agency.handler()
async def release(ctx: DataPlaneContext, booking: Booking) -> None:
    """Cancel a booking."""
    await ctx.run("cancel", desk.cancel, booking)


reserve_target = Target("Agency", "reserve", Booking, str)
release_target = Target("Agency", "release", Booking, None)

# The control plane.
journeys = ControlPlaneService("Journeys", idempotency_prefix="journey")


@journeys.compensation
async def give_back(ctx: restate.Context, booking: Booking) -> None:
    """Cancel a booking, whatever its state."""
    await ServiceClient(ctx, release_target).call(booking)


@journeys.main(steps=2)
async def book(cp: Orchestration, request: BookingRequest) -> list[str]:
    """Book flight and hotel. Each step records its compensation before its action."""
    flight = Booking(trip=cp.key, name=request.flight)
    hotel = Booking(trip=cp.key, name=request.hotel)
    return [
        await cp.step("flight", reserve_target, flight, compensate=give_back.bind(flight)),
        await cp.step("hotel", reserve_target, hotel, compensate=give_back.bind(hotel)),
    ]

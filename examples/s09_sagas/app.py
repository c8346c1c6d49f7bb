"""A trip that is booked, or leaves no trace."""

from __future__ import annotations

import restate

from examples.s09_sagas.world import Booking, BookingRequest, desk
from perdure import ControlPlaneService, DataPlaneContext, DataPlaneService, Orchestration, ServiceClient, Target

# The data plane does it, in a process of its own: the control plane knows names and types only.
agency = DataPlaneService("Agency")


@agency.handler()
async def reserve(ctx: DataPlaneContext, booking: Booking) -> str:
    """Book something."""
    return await ctx.run("book", desk.book, booking)


@agency.handler()
async def release(ctx: DataPlaneContext, booking: Booking) -> None:
    """Give it back."""
    await ctx.run("cancel", desk.cancel, booking)


reserve_target = Target("Agency", "reserve", Booking, str)
release_target = Target("Agency", "release", Booking, type(None))

# The control plane decides.
journeys = ControlPlaneService("Journeys", idempotency_prefix="journey")


@journeys.compensation
async def give_back(ctx: restate.Context, booking: Booking) -> None:
    """Undo a booking; whatever became of it."""
    await ServiceClient(ctx, release_target).call(booking)


@journeys.main(steps=2)
async def book(cp: Orchestration, request: BookingRequest) -> list[str]:
    """Book flight and hotel: each step records how it is undone, and is done then."""
    flight = Booking(trip=cp.key, name=request.flight)
    hotel = Booking(trip=cp.key, name=request.hotel)
    return [
        await cp.step("flight", reserve_target, flight, compensate=give_back.bind(flight)),
        await cp.step("hotel", reserve_target, hotel, compensate=give_back.bind(hotel)),
    ]

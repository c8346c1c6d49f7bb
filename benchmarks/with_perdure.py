"""The saga with Perdure."""

from __future__ import annotations

from benchmarks.messages import STEPS, Booked, Booking, Confirmation, Trip, book, booking_for, cancel
from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    Orchestration,
    Target,
)
from perdure.saga import hosting
from perdure.serving import Servable


def definitions(name: str, *, calls: bool) -> list[Servable]:
    """Return the services of the saga.

    Args:
        name: The workflow's name, and the prefix of the data plane's name.
        calls: The steps call the data plane; otherwise they are runs of the workflow.
    """
    data_plane = f"{name}Bookings"
    book_target = Target(data_plane, "book", Booking, Booked)
    cancel_target = Target(data_plane, "cancel", Booking, None)

    bookings = DataPlaneService(data_plane)

    @bookings.handler("book")
    async def _book(ctx: DataPlaneContext, booking: Booking) -> Booked:
        return await ctx.run("book", book, booking)

    @bookings.handler("cancel")
    async def _cancel(ctx: DataPlaneContext, booking: Booking) -> None:
        await ctx.run("cancel", cancel, booking)

    trips = ControlPlaneService(name)

    @trips.main(steps=len(STEPS))
    async def run(cp: Orchestration, trip: Trip) -> Confirmation:
        references = []
        for step in STEPS:
            booking = booking_for(trip, cp.key, step)
            if calls:
                booked = await cp.step(step, book_target, booking, compensate=cancel_target)
            else:
                booked = await cp.step(step, book, booking, compensate=cancel_target)
            references.append(booked.reference)
        return Confirmation(references=references)

    return [bookings, trips, *hosting.definitions()]

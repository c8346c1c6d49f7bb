"""The same trip with explicit compensations: register, add the compensation, then act."""

from __future__ import annotations

import restate

from examples.s09_sagas.world import Booking, BookingRequest, desk
from perdure import ControlPlaneService, Orchestration, run_with_retry

booking_saga = ControlPlaneService("booking-saga", idempotency_prefix="booking")


async def cancel_flight(ctx: restate.Context, booking: Booking) -> None:
    """Cancel the flight."""
    await run_with_retry(ctx, "cancel-flight", desk.cancel, booking)


async def cancel_hotel(ctx: restate.Context, booking: Booking) -> None:
    """Cancel the hotel."""
    await run_with_retry(ctx, "cancel-hotel", desk.cancel, booking)


# Registered with the definition, so that any process of the service can run them after the handler has ended.
booking_saga.register_compensation("book-flight", cancel_flight)
booking_saga.register_compensation("book-hotel", cancel_hotel)


@booking_saga.main(steps=2)
async def run(cp: Orchestration, request: BookingRequest) -> list[str]:
    """Book flight and hotel."""
    flight = Booking(trip=cp.key, name=request.flight)
    hotel = Booking(trip=cp.key, name=request.hotel)

    async def book() -> list[str]:
        cp.add_compensation_step("book-flight", flight)  # before the action
        reservations = [await run_with_retry(cp.ctx, "book-flight", desk.book, flight)]
        cp.add_compensation_step("book-hotel", hotel)
        reservations.append(await run_with_retry(cp.ctx, "book-hotel", desk.book, hotel))
        return reservations

    return await cp.orchestrate(book)

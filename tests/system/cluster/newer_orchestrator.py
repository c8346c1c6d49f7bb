"""A later version of the orchestrator. It reserves the hotel first, so neither version can replay the other's trips."""

from __future__ import annotations

import sys

import restate

from perdure import ControlPlaneService, Orchestration, ServiceClient
from perdure.serving import serve
from services.contracts import flights, hotels, notifications, payments
from services.contracts.trips import TripConfirmation, TripRequest
from services.control_plane.orchestrator.model import TripPlan

trips = ControlPlaneService("Trips", idempotency_prefix="trip", saga_prefix="", key_name="trip_id")


@trips.compensation
async def cancel_flight(ctx: restate.Context, undo: flights.CancelSeats) -> None:
    await ServiceClient(ctx, flights.cancel).call(undo)


@trips.compensation
async def cancel_hotel(ctx: restate.Context, undo: hotels.CancelRoom) -> None:
    await ServiceClient(ctx, hotels.cancel).call(undo)


@trips.compensation
async def refund_payment(ctx: restate.Context, undo: payments.RefundCharge) -> None:
    await ServiceClient(ctx, payments.refund).call(undo)


@trips.compensation
async def refuse_order(ctx: restate.Context, refusal: notifications.SendNotification) -> None:
    await ServiceClient(ctx, notifications.notify).call(refusal)


@trips.main(steps=4)
async def book(cp: Orchestration, request: TripRequest) -> TripConfirmation:
    plan = TripPlan(cp.key, request)
    cp.add_compensation_step("refuse_order", plan.notify_refused, step="order", after_others=True)
    room = await cp.step("hotel", hotels.reserve, plan.reserve_room, compensate=cancel_hotel.bind(plan.cancel_room))
    seats = await cp.step(
        "flight", flights.reserve, plan.reserve_seats, compensate=cancel_flight.bind(plan.cancel_seats)
    )
    charge = await cp.step("payment", payments.charge, plan.charge, compensate=refund_payment.bind(plan.refund))
    await ServiceClient(cp.ctx, notifications.notify).send(plan.notify_confirmed)
    return TripConfirmation(
        trip_id=cp.key,
        flight_reservation_id=seats.reservation_id,
        hotel_reservation_id=room.reservation_id,
        payment_id=charge.payment_id,
    )


if __name__ == "__main__":
    sys.exit(serve(trips, port=int(sys.argv[1])))

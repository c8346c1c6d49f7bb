"""A later version of the orchestrator. It reserves the hotel first, so neither version can replay the other's trips."""

from __future__ import annotations

import sys

from perdure import ControlPlaneService, Orchestration, ServiceClient, compensation
from perdure.serving import serve
from services.contracts import flights, hotels, notifications, payments
from services.contracts.trips import TripConfirmation, TripRequest
from services.control_plane.orchestrator.model import TripPlan

trips = ControlPlaneService("Trips", idempotency_prefix="trip", saga_prefix="", key_name="trip_id")


@trips.main(steps=4)
async def book(cp: Orchestration, request: TripRequest) -> TripConfirmation:
    plan = TripPlan(cp.key, request)
    refusal = compensation(notifications.notify, plan.notify_refused)
    cp.add_compensation_step(refusal, step="order", after_others=True)
    release_room = compensation(hotels.cancel, plan.cancel_room)
    room = await cp.step("hotel", hotels.reserve, plan.reserve_room, compensate=release_room)
    release_seats = compensation(flights.cancel, plan.cancel_seats)
    seats = await cp.step("flight", flights.reserve, plan.reserve_seats, compensate=release_seats)
    refund = compensation(payments.refund, plan.refund)
    charge = await cp.step("payment", payments.charge, plan.charge, compensate=refund)
    await ServiceClient(cp.ctx, notifications.notify).send(plan.notify_confirmed)
    return TripConfirmation(
        trip_id=cp.key,
        flight_reservation_id=seats.reservation_id,
        hotel_reservation_id=room.reservation_id,
        payment_id=charge.payment_id,
    )


if __name__ == "__main__":
    sys.exit(serve(trips, port=int(sys.argv[1])))

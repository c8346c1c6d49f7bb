"""`Trips`: books a trip, or rolls it back."""

from __future__ import annotations

from perdure import ControlPlaneService, Hold, Orchestration, ServiceClient, compensation
from perdure.approvals.messages import ApprovalResult
from perdure.errors import Refused
from services.contracts import flights, hotels, notifications, payments
from services.contracts.trips import TripConfirmation, TripRequest
from services.control_plane.orchestrator.model import TripPlan
from services.control_plane.orchestrator.settings import OrchestratorSettings


def trips_service(settings: OrchestratorSettings) -> ControlPlaneService:
    """Return the service that books trips.

    Args:
        settings: The approval limit, the approvers, and the settings of the rollback.
    """
    # The black-box contract: the saga's id is the trip's id, so there is no prefix.
    trips = ControlPlaneService(
        "Trips",
        idempotency_prefix="trip",
        saga_prefix="",
        key_name="trip_id",
        saga=settings.saga(),
        on_failure=None if settings.hold is None else Hold(settings.hold),
    )

    @trips.main(steps=4)
    async def book(cp: Orchestration, request: TripRequest) -> TripConfirmation:
        """Book a trip: flight, hotel, approval over the limit, payment, notification."""
        plan = TripPlan(cp.key, request)
        refusal = compensation(notifications.notify, plan.notify_refused)
        cp.add_compensation_step(refusal, step="order", after_others=True)
        release_seats = compensation(flights.cancel, plan.cancel_seats)
        seats = await cp.step("flight", flights.reserve, plan.reserve_seats, compensate=release_seats)
        release_room = compensation(hotels.cancel, plan.cancel_room)
        room = await cp.step("hotel", hotels.reserve, plan.reserve_room, compensate=release_room)
        if plan.needs_approval(settings.approval_limit_minor):
            await _ask(cp, plan, settings)
        refund = compensation(payments.refund, plan.refund)
        charge = await cp.step("payment", payments.charge, plan.charge, compensate=refund)
        # Sent, not called, so a failing notification does not roll the trip back. No wait follows, so no cancel can
        # arrive between the notification and the end of the trip.
        await ServiceClient(cp.ctx, notifications.notify).send(plan.notify_confirmed)
        return TripConfirmation(
            trip_id=cp.key,
            flight_reservation_id=seats.reservation_id,
            hotel_reservation_id=room.reservation_id,
            payment_id=charge.payment_id,
        )

    return trips


async def _ask(cp: Orchestration, plan: TripPlan, settings: OrchestratorSettings) -> None:
    """Wait for the approval of a trip; raise an error if it is rejected or times out."""
    timeout, options = settings.approval()
    options["title"] = plan.approval_title()
    options["subject"] = plan.request.traveller
    options["payload"] = plan.request.model_dump(mode="json")
    outcome = await cp.request_approval(plan.trip_id, timeout, **options)
    if outcome.outcome is not ApprovalResult.APPROVED:
        voters = ", ".join(outcome.decided_by) or "no approver"
        raise Refused(
            f"step 'approval' failed: rejected by {voters}: {outcome.reason}",
            403,
            "approval_rejected",
            {"step": "approval", "decided_by": voters},
        )

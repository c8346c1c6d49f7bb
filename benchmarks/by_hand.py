"""The saga on the SDK alone.

Serdes are explicit and run options are created once, which is the SDK's fastest way. Each compensation is recorded in
state before its step. Unlike Perdure, it has no rollback that survives a cancel or kill, no limited retries, no dead
letters and no status.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import restate
from pydantic import BaseModel
from restate.serde import JsonSerde, PydanticJsonSerde

from benchmarks.messages import STEPS, Booked, Booking, Confirmation, Trip, book, booking_for, cancel
from perdure.errors import TerminalError
from perdure.serving import Servable

M = TypeVar("M", bound=BaseModel)


class Undo(BaseModel):
    """Record of a step, written before its action.

    Args:
        position: 1 for the first step.
        service: Service of the compensation.
        handler: The compensation.
        booking: Payload of the compensation.
    """

    position: int
    service: str
    handler: str
    booking: Booking


def _serde(model: type[M]) -> PydanticJsonSerde[M]:
    return PydanticJsonSerde(model)  # type: ignore[no-untyped-call] # the SDK has no annotations there


TRIP = _serde(Trip)
BOOKING = _serde(Booking)
BOOKED = _serde(Booked)
CONFIRMATION = _serde(Confirmation)
UNDO = _serde(Undo)
TEXT: JsonSerde[str] = JsonSerde()
NOTHING: JsonSerde[None] = JsonSerde()

# The defaults of Perdure's runs.
_ATTEMPTS = 4
_FIRST_PAUSE = timedelta(milliseconds=100)
_LONGEST_PAUSE = timedelta(seconds=30)
BOOK: restate.RunOptions[Booked] = restate.RunOptions(
    serde=BOOKED, max_attempts=_ATTEMPTS, initial_retry_interval=_FIRST_PAUSE, max_retry_interval=_LONGEST_PAUSE
)
CANCEL: restate.RunOptions[None] = restate.RunOptions(
    serde=NOTHING, max_attempts=_ATTEMPTS, initial_retry_interval=_FIRST_PAUSE, max_retry_interval=_LONGEST_PAUSE
)


def definitions(name: str, *, calls: bool, record: bool = True) -> list[Servable]:
    """Return the services of the saga.

    Args:
        name: The workflow's name, and the prefix of the data plane's name.
        calls: The steps call the data plane; otherwise they are runs of the workflow.
        record: Compensations are recorded in state; otherwise the running handler holds them.
    """
    bookings = restate.Service(f"{name}Bookings", ingress_private=True)

    @bookings.handler("book", input_serde=BOOKING, output_serde=BOOKED)
    async def book_handler(ctx: restate.Context, booking: Booking) -> Booked:
        return await ctx.run_typed("book", book, BOOK, booking)

    @bookings.handler("cancel", input_serde=BOOKING, output_serde=NOTHING)
    async def cancel_handler(ctx: restate.Context, booking: Booking) -> None:
        await ctx.run_typed("cancel", cancel, CANCEL, booking)

    trips = restate.Workflow(name)

    @trips.main("run", input_serde=TRIP, output_serde=CONFIRMATION)
    async def run(ctx: restate.WorkflowContext, trip: Trip) -> Confirmation:
        trip_id = ctx.key()
        undo: list[Undo] = []
        references = []
        try:
            for position, step in enumerate(STEPS, 1):
                booking = booking_for(trip, trip_id, step)
                entry = Undo(position=position, service=bookings.name, handler="cancel", booking=booking)
                undo.append(entry)
                if record:
                    ctx.set(f"saga/{position:06d}", entry, serde=UNDO)
                if calls:
                    booked = await ctx.service_call(book_handler, booking)
                else:
                    booked = await ctx.run_typed(step, book, BOOK, booking)
                references.append(booked.reference)
        except TerminalError as error:
            for entry in reversed(undo):
                await ctx.generic_call(entry.service, entry.handler, BOOKING.serialize(entry.booking))
            if record:
                ctx.set("saga/closed", "rolled_back", serde=TEXT)
            undone = ",".join(entry.booking.step for entry in reversed(undo))
            raise TerminalError(error.message, error.status_code, metadata={"rollback_undone": undone}) from error
        if record:
            ctx.set("saga/closed", "completed", serde=TEXT)
        return Confirmation(references=references)

    return [bookings, trips]

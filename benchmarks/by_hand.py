"""The same saga by hand on the SDK: what somebody writes who knows it well and has no library.

Serdes are explicit and run options made once, as the SDK is fastest with. Each step's compensation is recorded in state
before the step, and the end is marked. What is not here, and perdure has: a rollback that outlives a cancel or a kill,
bounded retries, dead letters, a status.
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
    """A step as it is recorded before it is done.

    Args:
        position: 1 for the first step.
        service: Whose handler undoes it.
        handler: The handler.
        booking: What the handler is given.
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

# As many attempts and the same pauses as perdure's runs have by default.
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
        name: The workflow's name; the data plane's is made from it.
        calls: Whether the steps call the data plane, or are runs of the workflow's own.
        record: Whether compensations are recorded in state, or only remembered by the running handler.
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

"""A trip that goes well and one that does not, written in two ways."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from examples._stage import Example, Stage
from examples.s09_sagas import app, by_hand
from examples.s09_sagas.world import BookingRequest, desk
from perdure.saga import hosting


async def play(stage: Stage) -> None:
    """Play the example."""
    stage.say("with steps:")
    await _book_two_trips(stage, app.book, stage.key("steps"))
    stage.say("by hand:")
    await _book_two_trips(stage, by_hand.run, stage.key("hand"))


async def _book_two_trips(stage: Stage, main: Callable[[Any, BookingRequest], Awaitable[list[str]]], key: str) -> None:
    good, bad = f"{key}-good", f"{key}-bad"
    reservations = await stage.ingress.call(main, BookingRequest(flight="PD100", hotel="Harbour"), key=good)
    stage.say(f"  booked {' and '.join(reservations)}")

    error = await stage.refusal(stage.ingress.call(main, BookingRequest(flight="PD100", hotel="Overbooked"), key=bad))
    stage.say(f"  {error.status_code}: {error.message}")
    stage.say(f"  {error.metadata['rollback']}: {error.metadata['rollback_undone']}; held: {desk.held_by(bad)}")


example = Example("examples.s09_sagas", play, (app.agency, app.journeys, by_hand.booking_saga, *hosting.definitions()))

if __name__ == "__main__":
    sys.exit(example.main())

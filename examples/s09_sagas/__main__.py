"""Book a trip that succeeds and one that fails, with two implementations."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from examples._session import Example, Session
from examples.s09_sagas import app, by_hand
from examples.s09_sagas.world import BookingRequest, desk


async def play(session: Session) -> None:
    """Run the example."""
    session.print("with steps:")
    await _book_two_trips(session, app.book, session.key("steps"))
    session.print("by hand:")
    await _book_two_trips(session, by_hand.run, session.key("hand"))


async def _book_two_trips(
    session: Session, main: Callable[[Any, BookingRequest], Awaitable[list[str]]], key: str
) -> None:
    good, bad = f"{key}-good", f"{key}-bad"
    reservations = await session.ingress.call(main, BookingRequest(flight="PD100", hotel="Harbour"), key=good)
    session.print(f"  booked {' and '.join(reservations)}")

    error = await session.refusal(
        session.ingress.call(main, BookingRequest(flight="PD100", hotel="Overbooked"), key=bad)
    )
    session.print(f"  {error.status_code}: {error.message}")
    session.print(f"  {error.metadata['rollback']}: {error.metadata['rollback_undone']}; held: {desk.held_by(bad)}")


example = Example("examples.s09_sagas", play, (app.agency, app.journeys, by_hand.booking_saga))

if __name__ == "__main__":
    sys.exit(example.main())

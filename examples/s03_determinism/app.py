"""Random values and times that a replay sees again."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from uuid import UUID

import restate
from pydantic import BaseModel

from perdure import DeterministicHelpers, Time, handler


class Draw(BaseModel):
    """What a draw came to.

    Args:
        ticket: The draw's id.
        number: The lucky number.
        winner: Who won.
        at: When it was drawn.
        took: How long it took until the winner was told.
    """

    ticket: UUID
    number: int
    winner: str
    at: datetime
    took: timedelta


drawn: defaultdict[str, set[tuple[UUID, int, str, datetime]]] = defaultdict(set)
"""What each attempt drew, for the example to look at; a handler wouldn't keep this."""

lottery = restate.VirtualObject("Lottery")


@handler(lottery, "exclusive")
async def draw(ctx: restate.ObjectContext, people: list[str]) -> Draw:
    """Draw a winner, and sleep in between, so that the engine may replay what is above the sleep."""
    helpers, clock = DeterministicHelpers(ctx), Time(ctx)
    at = await clock.now()
    ticket = helpers.uuid()
    number = helpers.rand_int(1, 50)
    winner = helpers.rand_choice(people)
    drawn[ctx.key()].add((ticket, number, winner, at))
    await ctx.sleep(timedelta(milliseconds=20))
    return Draw(ticket=ticket, number=number, winner=winner, at=at, took=await clock.since(at))

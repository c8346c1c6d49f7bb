"""Random values and times that survive a replay."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from uuid import UUID

import restate
from pydantic import BaseModel

from perdure import DeterministicHelpers, Time, handler


class Draw(BaseModel):
    """Result of a draw.

    Args:
        ticket: The draw's ID.
        number: The lucky number.
        winner: The winner.
        at: Time of the draw.
        took: Duration until the announcement.
    """

    ticket: UUID
    number: int
    winner: str
    at: datetime
    took: timedelta


drawn: defaultdict[str, set[tuple[UUID, int, str, datetime]]] = defaultdict(set)
"""The values that each attempt drew, for the example only."""

lottery = restate.VirtualObject("Lottery")


@handler(lottery, "exclusive")
async def draw(ctx: restate.ObjectContext, people: list[str]) -> Draw:
    """Draw a winner. The engine may replay the code before the sleep."""
    helpers, clock = DeterministicHelpers(ctx), Time(ctx)
    at = await clock.now()
    ticket = helpers.uuid()
    number = helpers.rand_int(1, 50)
    winner = helpers.rand_choice(people)
    drawn[ctx.key()].add((ticket, number, winner, at))
    await ctx.sleep(timedelta(milliseconds=20))
    return Draw(ticket=ticket, number=number, winner=winner, at=at, took=await clock.since(at))

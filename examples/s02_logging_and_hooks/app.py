"""Logs that are silent on replay, and hooks that see what happens."""

from __future__ import annotations

from datetime import timedelta

import restate

from perdure import State, handler
from perdure.observability.logging import get_logger

log = get_logger("examples.visits")
visits = restate.VirtualObject("Visits")


@handler(visits, "exclusive")
async def visit(ctx: restate.ObjectContext, name: str) -> int:
    """Count a visit. After the sleep, the engine may replay what is above it: that is logged once all the same."""
    count = State(ctx, "count", int, default=0)
    log.info("somebody came in", name=name)
    await ctx.sleep(timedelta(milliseconds=20))
    number = await count.get() + 1
    await count.set(number)
    log.info("counted", number=number)
    return number

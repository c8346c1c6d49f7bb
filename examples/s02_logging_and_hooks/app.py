"""Logs that are silent during replay, and observability hooks."""

from __future__ import annotations

from datetime import timedelta

import restate

from perdure import State, handler
from perdure.observability.logging import get_logger

log = get_logger("examples.visits")
visits = restate.VirtualObject("Visits")


@handler(visits, "exclusive")
async def visit(ctx: restate.ObjectContext, name: str) -> int:
    """Count a visit. The engine may replay the code before the sleep; it logs once anyway."""
    count = State(ctx, "count", int, default=0)
    log.info("visitor arrived", name=name)
    await ctx.sleep(timedelta(milliseconds=20))
    number = await count.get() + 1
    await count.set(number)
    log.info("counted", number=number)
    return number

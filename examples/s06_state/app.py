"""Typed state, guarded against writes from where they may not come."""

from __future__ import annotations

import restate
from pydantic import BaseModel

from perdure import ReadOnlyState, State, clear_all, handler


class Line(BaseModel):
    """A line of a cart.

    Args:
        article: What.
        pieces: How many.
    """

    article: str
    pieces: int = 1


carts = restate.VirtualObject("Carts")


@handler(carts, "exclusive")
async def add(ctx: restate.ObjectContext, line: Line) -> int:
    """Add a line; return how many there are. Only one exclusive handler of a key runs at a time."""
    lines = State(ctx, "lines", list[Line], default_factory=list[Line])
    new = [*await lines.get(), line]
    await lines.set(new)
    return len(new)


@handler(carts, "shared")
async def show(ctx: restate.ObjectSharedContext) -> list[Line]:
    """Show the lines; shared handlers run beside all others."""
    return await ReadOnlyState(ctx, "lines", list[Line], default_factory=list[Line]).get()


@handler(carts, "exclusive")
async def empty(ctx: restate.ObjectContext) -> None:
    """Forget everything about this cart."""
    await clear_all(ctx)


@handler(carts, "shared")
async def peek_and_scribble(ctx: restate.ObjectSharedContext) -> None:
    """Try to write where only reading is allowed."""
    await State(ctx, "lines", list[Line]).set([])  # type: ignore[misc] # the type checker refuses it; see what happens

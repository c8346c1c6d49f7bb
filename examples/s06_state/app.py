"""Typed state, with errors for writes from shared handlers."""

from __future__ import annotations

import restate
from pydantic import BaseModel

from perdure import ReadOnlyState, State, clear_all, handler


class Line(BaseModel):
    """A line of a cart.

    Args:
        article: The article.
        pieces: Number of pieces.
    """

    article: str
    pieces: int = 1


carts = restate.VirtualObject("Carts")


@handler(carts, "exclusive")
async def add(ctx: restate.ObjectContext, line: Line) -> int:
    """Add a line and return the number of lines. Only one exclusive handler of a key runs at a time."""
    lines = State(ctx, "lines", list[Line], default_factory=list[Line])
    new = [*await lines.get(), line]
    await lines.set(new)
    return len(new)


@handler(carts, "shared")
async def show(ctx: restate.ObjectSharedContext) -> list[Line]:
    """Return the lines. Shared handlers run concurrently with others."""
    return await ReadOnlyState(ctx, "lines", list[Line], default_factory=list[Line]).get()


@handler(carts, "exclusive")
async def empty(ctx: restate.ObjectContext) -> None:
    """Remove the state of this cart."""
    await clear_all(ctx)


@handler(carts, "shared")
async def peek_and_scribble(ctx: restate.ObjectSharedContext) -> None:
    """Write from a shared handler, which fails."""
    await State(ctx, "lines", list[Line]).set([])  # type: ignore[misc] # the type checker refuses it; see what happens

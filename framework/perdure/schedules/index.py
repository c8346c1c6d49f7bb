"""`ScheduleIndex`: which schedules there are."""

from __future__ import annotations

import restate

from perdure.clients import ObjectClient
from perdure.errors import NotFound, TerminalError
from perdure.handlers import handler
from perdure.schedules.messages import ScheduleListRequest, SchedulePage, status_target
from perdure.state import State

_PREFIX = "schedule/"


async def _put(ctx: restate.ObjectContext, name: str) -> None:
    """Add a schedule's name."""
    await State(ctx, _PREFIX + name, bool).set(True)


async def _drop(ctx: restate.ObjectContext, name: str) -> None:
    """Take a schedule's name out."""
    await State(ctx, _PREFIX + name, bool).clear()


async def _list(ctx: restate.ObjectSharedContext, request: ScheduleListRequest) -> SchedulePage:
    """List schedules, in the order of their names."""
    names = sorted(name.removeprefix(_PREFIX) for name in await ctx.state_keys() if name.startswith(_PREFIX))
    first = (request.page - 1) * request.page_size
    asked = [ObjectClient(ctx, status_target, name).call_async() for name in names[first : first + request.page_size]]
    items = []
    for answer in asked:
        try:
            items.append(await answer)
        except TerminalError as error:
            if error.status_code != NotFound.default_status:  # it was removed in this moment
                raise
    pages = max(1, -(-len(names) // request.page_size))
    return SchedulePage(items=items, total=len(names), page=request.page, pages=pages)


def build_index() -> restate.VirtualObject:
    """Return the index's virtual object."""
    index = restate.VirtualObject("ScheduleIndex", description="Which schedules there are.", enable_lazy_state=True)
    handler(index, "exclusive", name="put", ingress_private=True)(_put)
    handler(index, "exclusive", name="drop", ingress_private=True)(_drop)
    handler(index, "shared", name="list", read_only=True, ingress_private=False)(_list)
    return index

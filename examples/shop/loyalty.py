"""`Loyalty`: the points of a customer, a virtual object per customer."""

import restate

from examples.shop.store import Write
from perdure import MutableState, ReadOnlyState, handler

loyalty = restate.VirtualObject("Loyalty")
NO_ORDERS: dict[str, int] = {}


class Points(Write):
    points: int


@handler(loyalty, "exclusive")
async def grant(ctx: restate.ObjectContext, request: Points) -> None:
    orders = MutableState(ctx, "orders", dict[str, int], default=NO_ORDERS)
    await orders.set({request.order: request.points} | await orders.get())  # a revoked order stays revoked


@handler(loyalty, "exclusive")
async def revoke(ctx: restate.ObjectContext, request: Points) -> None:
    orders = MutableState(ctx, "orders", dict[str, int], default=NO_ORDERS)
    await orders.set(await orders.get() | {request.order: 0})


@handler(loyalty, "shared", read_only=True)
async def total(ctx: restate.ObjectSharedContext) -> int:
    orders = ReadOnlyState(ctx, "orders", dict[str, int], default=NO_ORDERS)
    return sum((await orders.get()).values())

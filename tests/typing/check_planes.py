"""The two planes: steps are typed, and the data plane is not handed what belongs to the control plane."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

import restate
from pydantic import BaseModel

from perdure import ControlPlaneService, DataPlaneContext, DataPlaneService, Orchestration, Target


class Order(BaseModel):
    id: str


class Receipt(BaseModel):
    text: str


reserve = Target("Flights", "reserve", Order, Receipt)
trips = ControlPlaneService("Trips")
flights = DataPlaneService("Flights")


async def local(order: Order) -> Receipt:
    return Receipt(text=order.id)


def receipt(order: Order) -> Receipt:
    return Receipt(text=order.id)


@trips.compensation()
async def cancel(ctx: restate.Context, order: Order) -> None: ...


@trips.main()
async def book(cp: Orchestration, order: Order) -> Receipt:
    assert_type(await cp.step("a", reserve, order, compensate=cancel), Receipt)
    assert_type(await cp.step("b", local, order, compensate=cancel), Receipt)
    assert_type(await cp.step("h", do_reserve, order, timeout=timedelta(seconds=1)), Receipt)
    assert_type(await cp.await_human_approval("a", timedelta(hours=1)), bool)
    assert_type(cp.generate_idempotency_key("x"), str)
    assert_type(cp.key, str)

    await cp.step("c", reserve, "no order")  # type: ignore[arg-type]
    await cp.await_human_approval("a", 5)  # type: ignore[arg-type]
    return Receipt(text="x")


@flights.handler()
async def do_reserve(ctx: DataPlaneContext, order: Order) -> Receipt:
    assert_type(await ctx.run("sync", receipt, order), Receipt)
    assert_type(await ctx.run("async", local, order), Receipt)
    assert_type(ctx.headers, dict[str, str])

    ctx.get("state")  # type: ignore[attr-defined]
    ctx.promise("x")  # type: ignore[attr-defined]
    ctx.step("x", reserve, order)  # type: ignore[attr-defined]
    return Receipt(text="x")

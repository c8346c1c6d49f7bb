"""The control plane infers the types of steps and calls. The data plane has no state, promise or saga."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

import restate
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    KeyedTarget,
    Orchestration,
    SafeStep,
    Step,
    Target,
    compensation,
)
from perdure.retry import RetryPolicy
from perdure.saga.compensations import BoundCompensation, Compensation

SECOND = timedelta(seconds=1)


class Order(BaseModel):
    id: str


class Receipt(BaseModel):
    text: str


reserve = Target("Flights", "reserve", Order, Receipt)
ping = Target("Flights", "ping", None, str)
stay = KeyedTarget("Stays", "run", Order, Receipt)
check_in = KeyedTarget("Stays", "check_in", None, str)
trips = ControlPlaneService("Trips")
hotels = ControlPlaneService("Hotels")
flights = DataPlaneService("Flights")


async def local(order: Order) -> Receipt:
    return Receipt(text=order.id)


def receipt(order: Order) -> Receipt:
    return Receipt(text=order.id)


@trips.compensation(retry=RetryPolicy(max_attempts=None))
async def cancel(ctx: restate.Context, order: Order) -> None: ...


@trips.compensation
async def refund(ctx: restate.Context, amount: int) -> None: ...


async def erase(ctx: restate.Context, order: Order) -> None: ...


@trips.main()
async def book(cp: Orchestration, order: Order) -> Receipt:
    assert_type(await cp.step("a", reserve, order, compensate=cancel.bind(order)), Receipt)
    assert_type(await cp.step("b", local, order, compensate=refund.bind(5, retry=RetryPolicy())), Receipt)
    assert_type(await cp.step("h", do_reserve, order, timeout=SECOND), Receipt)
    assert_type(await cp.step("i", reserve, order, compensate=do_reserve), Receipt)
    assert_type(await cp.step("j", do_reserve, order, compensate=reserve), Receipt)
    assert_type(await cp.step("k", local, order, compensate=cancel), Receipt)
    assert_type(await cp.step("l", stay, order, key="k", compensate=compensation(stay, order, key="k")), Receipt)
    assert_type(await cp.child("child", reserve_room, order), Receipt)
    assert_type(await cp.call(reserve, order), Receipt)
    assert_type(await cp.call(do_reserve, order), Receipt)
    assert_type(await cp.call(stay, order, key="k"), Receipt)
    assert_type(await cp.call(reserve_room, order, key="k"), Receipt)
    assert_type(await cp.call(check_in, key="k"), str)
    assert_type(await cp.step("s", stay, order, key="k"), Receipt)
    assert_type(await cp.step("t", reserve_room, order, key="k"), Receipt)
    assert_type(await cp.child("u", stay, order), Receipt)
    assert_type(await cp.call(ping), str)
    assert_type(await cp.await_human_approval("a", SECOND), bool)
    assert_type(cp.add_compensation_step("cancel", order), bool)
    assert_type(cp.add_compensation_step(compensation(reserve, order), step="cancel"), bool)
    assert_type(cp.generate_idempotency_key("x"), str)
    assert_type(cp.key, str)
    await cp.sleep(SECOND)
    cp.pivot()

    await cp.step("c", reserve, "no order")  # type: ignore[arg-type]
    await cp.step("d", reserve, order, compensate=refund)  # type: ignore[arg-type]
    await cp.step("f", reserve, order, compensate=stay)  # type: ignore[arg-type]
    await cp.step("g", reserve, order, compensate=ping)  # type: ignore[arg-type]
    await cp.step("e", reserve, order, compensate="cancel")  # type: ignore[call-overload]
    await cp.call(reserve, "no order")  # type: ignore[arg-type]
    await cp.call(stay, order)  # type: ignore[arg-type]
    await cp.call(check_in)  # type: ignore[arg-type]
    await cp.call(reserve_room, order)  # type: ignore[arg-type]
    await cp.call(reserve, order, key="k")  # type: ignore[call-overload]
    await cp.step("v", stay, order)  # type: ignore[arg-type]
    await cp.step("w", reserve_room, order)  # type: ignore[arg-type]
    await cp.step("x", reserve, order, key="k")  # type: ignore[call-overload]
    await cp.child("y", reserve, order)  # type: ignore[arg-type]
    Step("z", stay, order)  # type: ignore[arg-type]
    await cp.sleep(5)  # type: ignore[arg-type]
    await cp.await_human_approval("a", 5)  # type: ignore[arg-type]
    await cp.await_human_approval("a", SECOND, on_timeout="never")  # type: ignore[arg-type]
    return Receipt(text="x")


@hotels.main
async def reserve_room(cp: Orchestration, order: Order) -> Receipt:
    async def act() -> Receipt:
        return Receipt(text="x")

    undo = cancel.bind(order)
    assert_type(await SafeStep(cp.saga, "a").with_compensation(undo).execute(act), Receipt)
    assert_type(Step("a", reserve, order, undo), Step[Order, Receipt])

    SafeStep(cp.saga, "b").with_compensation("cancel")  # type: ignore[arg-type]
    assert_type(Step("a", reserve, order, do_reserve), Step[Order, Receipt])
    Step("b", reserve, order, refund)  # type: ignore[arg-type]
    return Receipt(text="x")


@hotels.handler
async def rooms(ctx: restate.WorkflowSharedContext) -> int:
    return 1


def compensations() -> None:
    assert_type(cancel, Compensation[Order])
    assert_type(refund, Compensation[int])
    assert_type(compensation(do_reserve, Order(id="1")), BoundCompensation)
    assert_type(compensation(refund, 5), BoundCompensation)
    compensation(do_reserve, "no order")  # type: ignore[arg-type]
    compensation(stay, Order(id="1"))  # type: ignore[arg-type]
    assert_type(trips.register_compensation("erase", erase), Compensation[Order])

    cancel.bind(Receipt(text="x"))  # type: ignore[arg-type]
    refund.bind("5")  # type: ignore[arg-type]
    trips.compensation(receipt)  # type: ignore[arg-type]
    trips.register_compensation("receipt", receipt)  # type: ignore[arg-type]


@flights.handler()
async def do_reserve(ctx: DataPlaneContext, order: Order) -> Receipt:
    assert_type(await ctx.run("sync", receipt, order), Receipt)
    assert_type(await ctx.run("async", local, order), Receipt)
    assert_type(ctx.headers, dict[str, str])

    ctx.get("state")  # type: ignore[attr-defined]
    ctx.promise("x")  # type: ignore[attr-defined]
    ctx.step("x", reserve, order)  # type: ignore[attr-defined]
    return Receipt(text="x")

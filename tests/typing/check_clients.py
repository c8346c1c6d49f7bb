"""Types of clients from targets and functions."""

from __future__ import annotations

from typing import Any, assert_type

import restate
from pydantic import BaseModel

from perdure import (
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    KeyedTarget,
    ObjectClient,
    ServiceClient,
    Target,
    WorkflowClient,
)
from perdure.clients import CallFuture, SentInvocation, WorkflowOutput
from perdure.schedules import ScheduleClient


class Order(BaseModel):
    id: str


class Receipt(BaseModel):
    text: str


flights = DataPlaneService("Flights")


@flights.handler()
async def reserve(ctx: DataPlaneContext, order: Order) -> Receipt:
    return Receipt(text=order.id)


@flights.handler()
async def ping(ctx: DataPlaneContext) -> int:
    return 1


counter = restate.VirtualObject("Counter")
flow = restate.Workflow("Flow")


@counter.handler()
async def count(ctx: restate.ObjectContext, order: Order) -> Receipt:
    return Receipt(text=order.id)


@flow.main()
async def wait(ctx: restate.WorkflowContext) -> int:
    return 1


make = Target("Flights", "make", Order, Receipt)
many = Target("Flights", "many", list[Order], list[Receipt])
nothing = Target("Flights", "nothing", None, None)
book = KeyedTarget("Trips", "run", Order, Receipt)
release = KeyedTarget("Trips", "release", str, int)
pause = KeyedTarget("Trips", "pause", None, None)


async def targets(ctx: restate.Context) -> None:
    assert_type(make, Target[Order, Receipt])
    assert_type(book, KeyedTarget[Order, Receipt])
    assert_type(await ServiceClient(ctx, make).call(Order(id="1")), Receipt)
    assert_type(await ServiceClient(ctx, many).call([Order(id="1")]), list[Receipt])
    assert_type(await ObjectClient(ctx, book, "k").call(Order(id="1")), Receipt)
    assert_type(ServiceClient(ctx, make).call_async(Order(id="1")), CallFuture[Receipt])
    assert_type(await ServiceClient(ctx, make).call_async(Order(id="1")), Receipt)
    assert_type(await ServiceClient(ctx, make).send(Order(id="1")), SentInvocation)
    workflow = WorkflowClient(ctx, book, "k")
    assert_type(await workflow.submit(Order(id="1")), str)
    assert_type(await workflow.attach("inv_1"), Receipt)
    assert_type(await workflow.output("inv_1"), WorkflowOutput[Receipt])
    assert_type(workflow.attach_future("inv_1"), restate.RestateDurableFuture[Receipt])
    assert_type(await workflow.signal(release, "word"), int)
    assert_type(await workflow.signal(reserve, Order(id="1")), Receipt)
    assert_type(await workflow.signal(ping), int)
    await workflow.signal(pause)
    await ServiceClient(ctx, nothing).call()
    await ServiceClient(ctx, nothing).call(headers={"x-mine": "a"}, idempotency_key="k")

    await ServiceClient(ctx, make).call(Receipt(text="x"))  # type: ignore[arg-type]
    await ServiceClient(ctx, make).call({"id": "1"})  # type: ignore[arg-type]
    await ServiceClient(ctx, many).send(Order(id="1"))  # type: ignore[arg-type]
    await workflow.submit("1")  # type: ignore[arg-type]
    await workflow.signal(release, 5)  # type: ignore[arg-type]
    await workflow.signal(release)  # type: ignore[arg-type]
    ObjectClient(ctx, book)  # type: ignore[call-overload]


async def keys(ctx: restate.Context, ingress: IngressClient, schedules: ScheduleClient) -> None:
    assert_type(await ObjectClient(ctx, count, "k").call(Order(id="1")), Receipt)
    assert_type(await WorkflowClient(ctx, wait, "k").call(), int)
    assert_type(await ingress.call(count, Order(id="1"), key="k"), Receipt)
    assert_type(await ingress.call(wait, key="k"), int)
    await schedules.set("nightly", target=book, request=Order(id="1"), key="k")
    await schedules.set("nightly", target=make, request=Order(id="1"))
    await schedules.set("nightly", target=ping)

    ServiceClient(ctx, book)  # type: ignore[arg-type]
    ServiceClient(ctx, count)  # type: ignore[arg-type]
    ServiceClient(ctx, wait)  # type: ignore[arg-type]
    ObjectClient(ctx, make, "k")  # type: ignore[call-overload]
    WorkflowClient(ctx, make, "k")  # type: ignore[call-overload]
    await ingress.call(book, Order(id="1"))  # type: ignore[arg-type]
    await ingress.call(make, Order(id="1"), key="k")  # type: ignore[call-overload]
    await ingress.call(count, Order(id="1"))  # type: ignore[arg-type]
    await ingress.call(wait)  # type: ignore[arg-type]
    await ingress.send(book, Order(id="1"))  # type: ignore[arg-type]
    await ingress.send(pause)  # type: ignore[arg-type]
    await ingress.attach(make, key="k")  # type: ignore[call-overload]
    await schedules.set("nightly", target=book, request=Order(id="1"))  # type: ignore[arg-type]
    await schedules.set("nightly", target=wait)  # type: ignore[arg-type]


async def functions(ctx: restate.Context) -> None:
    assert_type(await ServiceClient(ctx, reserve).call(Order(id="1")), Receipt)
    assert_type(await ServiceClient(ctx, ping).call(), int)
    assert_type(await ObjectClient(ctx, ping, "k").call(), int)

    await ServiceClient(ctx, reserve).call("1")  # type: ignore[arg-type]
    await ServiceClient(ctx, ping).call(5)  # type: ignore[arg-type]


async def over_the_ingress(ingress: IngressClient) -> None:
    assert_type(await ingress.call(book, Order(id="1"), key="k"), Receipt)
    assert_type(await ingress.call(reserve, Order(id="1")), Receipt)
    assert_type(await ingress.call(ping), int)
    assert_type(await ingress.send(ping), str)
    assert_type(await ingress.attach(book, key="k"), Receipt)
    assert_type(await ingress.attach(book, invocation_id="inv_1"), Receipt)
    assert_type(await ingress.attach(ping, idempotency_key="k"), int)
    assert_type(await ingress.attach(ping, key="k", idempotency_key="k"), int)
    assert_type(await ingress.output(ping, key="k"), int)
    assert_type(await ingress.output(book, invocation_id="inv_1"), Receipt)
    assert_type(await ingress.submit(book, Order(id="1"), key="k"), str)
    assert_type(await ingress.submit(ping, key="k", headers={"x-mine": "a"}), str)
    await ingress.call(pause, key="k")
    await ingress.call(nothing)

    await ingress.call(book, "1", key="k")  # type: ignore[arg-type]
    await ingress.send(reserve, "1")  # type: ignore[arg-type]
    await ingress.call(ping, 5)  # type: ignore[arg-type]
    await ingress.attach(book)  # type: ignore[call-overload]
    await ingress.output(book, key="k", invocation_id="inv_1")  # type: ignore[call-overload]
    await ingress.submit(book, Order(id="1"))  # type: ignore[call-overload]
    await ingress.submit(book, "1", key="k")  # type: ignore[arg-type]


def untyped(value: Any) -> None:
    Target("A", "b", "Order", Receipt)  # type: ignore[call-overload]
    KeyedTarget("A", "b", "Order", Receipt)  # type: ignore[call-overload]

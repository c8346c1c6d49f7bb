"""Types of clients from targets and functions."""

from __future__ import annotations

from typing import Any, assert_type

import restate
from pydantic import BaseModel

from perdure import (
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    ObjectClient,
    ServiceClient,
    Target,
    WorkflowClient,
)
from perdure.clients import CallFuture, SentInvocation, WorkflowOutput


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


book = Target("Trips", "run", Order, Receipt)
release = Target("Trips", "release", str, int)
many = Target("Trips", "many", list[Order], list[Receipt])
nothing = Target("Trips", "nothing", None, None)


async def targets(ctx: restate.Context) -> None:
    assert_type(book, Target[Order, Receipt])
    assert_type(await ServiceClient(ctx, book).call(Order(id="1")), Receipt)
    assert_type(await ServiceClient(ctx, many).call([Order(id="1")]), list[Receipt])
    assert_type(await ObjectClient(ctx, book, "k").call(Order(id="1")), Receipt)
    assert_type(ServiceClient(ctx, book).call_async(Order(id="1")), CallFuture[Receipt])
    assert_type(await ServiceClient(ctx, book).call_async(Order(id="1")), Receipt)
    assert_type(await ServiceClient(ctx, book).send(Order(id="1")), SentInvocation)
    workflow = WorkflowClient(ctx, book, "k")
    assert_type(await workflow.submit(Order(id="1")), str)
    assert_type(await workflow.attach("inv_1"), Receipt)
    assert_type(await workflow.output("inv_1"), WorkflowOutput[Receipt])
    assert_type(workflow.attach_future("inv_1"), restate.RestateDurableFuture[Receipt])
    assert_type(await workflow.signal(release, "word"), int)
    assert_type(await workflow.signal(reserve, Order(id="1")), Receipt)
    assert_type(await workflow.signal(ping), int)
    await workflow.signal(nothing)
    await ServiceClient(ctx, nothing).call()
    await ServiceClient(ctx, nothing).call(headers={"x-mine": "a"}, idempotency_key="k")

    await ServiceClient(ctx, book).call(Receipt(text="x"))  # type: ignore[arg-type]
    await ServiceClient(ctx, book).call({"id": "1"})  # type: ignore[arg-type]
    await ServiceClient(ctx, many).send(Order(id="1"))  # type: ignore[arg-type]
    await workflow.submit("1")  # type: ignore[arg-type]
    await workflow.signal(release, 5)  # type: ignore[arg-type]
    await workflow.signal(release)  # type: ignore[arg-type]
    ObjectClient(ctx, book)  # type: ignore[call-overload]


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
    await ingress.call(nothing, key="k")

    await ingress.call(book, "1", key="k")  # type: ignore[arg-type]
    await ingress.send(reserve, "1")  # type: ignore[arg-type]
    await ingress.call(ping, 5)  # type: ignore[arg-type]
    await ingress.attach(book)  # type: ignore[call-overload]
    await ingress.output(book, key="k", invocation_id="inv_1")  # type: ignore[call-overload]
    await ingress.submit(book, Order(id="1"))  # type: ignore[call-overload]
    await ingress.submit(book, "1", key="k")  # type: ignore[arg-type]


def untyped(value: Any) -> None:
    Target("A", "b", "Order", Receipt)  # type: ignore[call-overload]

"""Services that tests of clients call, and a handler that calls them."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import restate as sdk
from pydantic import BaseModel

from perdure import IngressClient, State, Target, handler, run_with_retry
from perdure.errors import Refused
from tests.support import Recording


class Order(BaseModel):
    key: str
    number: int = 0


class Receipt(BaseModel):
    text: str


echo = Target("Callees", "echo", Order, Receipt)


slow_echo = Target("Callees", "slow_echo", Order, Receipt)


many = Target("Callees", "many", list[Order], list[Receipt])


nothing = Target("Callees", "nothing", None, None)


refuse = Target("Callees", "refuse", Order, Receipt)


note = Target("Callees", "note", Order, None)


add = Target("Sums", "add", int, int)


total = Target("Sums", "total", None, int)


wait_flow = Target("Flows", "run", Order, Receipt)


release = Target("Flows", "release", str, None)


def callees(did: Recording) -> list[Any]:
    service, sums, flows = sdk.Service("Callees"), sdk.VirtualObject("Sums"), sdk.Workflow("Flows")

    @handler(service, name="echo")
    async def _echo(ctx: sdk.Context, order: Order) -> Receipt:
        did.add(f"echo {order.key}/{order.number}")
        return Receipt(text=f"no. {order.number}")

    @handler(service, name="slow_echo")
    async def _slow_echo(ctx: sdk.Context, order: Order) -> Receipt:
        await ctx.sleep(timedelta(milliseconds=order.number))
        return Receipt(text=f"no. {order.number}")

    @handler(service, name="many")
    async def _many(ctx: sdk.Context, orders: list[Order]) -> list[Receipt]:
        return [Receipt(text=order.key) for order in orders]

    @handler(service, name="nothing")
    async def _nothing(ctx: sdk.Context) -> None: ...

    @handler(service, name="refuse")
    async def _refuse(ctx: sdk.Context, order: Order) -> Receipt:
        raise Refused("no seats left", 410, "seats_sold_out", {"flight": "PD100"})

    @handler(service, name="note")
    async def _note(ctx: sdk.Context, order: Order) -> None:
        await run_with_retry(ctx, "note", did.add, f"note {order.key}/{time.time()}")

    @handler(sums, "exclusive", name="add")
    async def _add(ctx: sdk.ObjectContext, number: int) -> int:
        state = State(ctx, "sum", int, default=0)
        await state.set((await state.get() or 0) + number)
        return await state.get() or 0

    @handler(sums, "shared", name="total")
    async def _total(ctx: sdk.ObjectSharedContext) -> int:
        return await State(ctx, "sum", int, default=0).get() or 0

    @handler(flows, "main", name="run")
    async def _run(ctx: sdk.WorkflowContext, order: Order) -> Receipt:
        if order.number < 0:
            raise Refused("less than nothing", 422, "negative")
        return Receipt(text=await ctx.promise("word", type_hint=str).value())

    @handler(flows, "shared", name="release")
    async def _release(ctx: sdk.WorkflowSharedContext, word: str) -> None:
        await ctx.promise("word", type_hint=str).resolve(word)

    return [service, sums, flows]


def calling(work: Any) -> tuple[sdk.Service, Target[str, list[str]]]:
    """Return a service whose handler runs the function, and a way to call it with a fresh key."""
    service = sdk.Service("Callers")

    async def go(ctx: sdk.Context, key: str) -> list[str]:
        return [str(item) for item in await work(ctx, key)]

    handler(service)(go)
    return service, Target("Callers", "go", str, list[str])


async def done(restate, did: Recording, work: Any, *, check_targets: bool = True) -> list[str]:
    service, go = calling(work)
    env = await restate.serve(service, *callees(did), check_targets=check_targets)
    async with IngressClient(env.ingress) as ingress:
        return await ingress.call(go, str(uuid4()))

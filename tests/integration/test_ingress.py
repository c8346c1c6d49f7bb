"""Ingress client with a real engine."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import IngressClient, Target, handler, run_with_retry
from perdure._runtime.ports import free_ports
from perdure.errors import AlreadyStarted, IngressError, InvocationNotFound, NotReady, Refused
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("all")


class Order(BaseModel):
    key: str
    number: int = 0


class Receipt(BaseModel):
    text: str


def services(did: Recording) -> tuple[list[Any], dict[str, Any]]:
    desk, mirror, flow = sdk.Service("Desk"), sdk.VirtualObject("Mirror"), sdk.Workflow("Flow")
    quick_death = sdk.InvocationRetryPolicy(
        initial_interval=timedelta(milliseconds=1), max_attempts=2, on_max_attempts="kill"
    )

    @handler(desk)
    async def serve(ctx: sdk.Context, order: Order) -> Receipt:
        await run_with_retry(ctx, "note", did.add, f"serve {order.key}/{time.time()}")
        return Receipt(text=f"no. {order.number}")

    @handler(desk)
    async def maybe(ctx: sdk.Context, order: Order | None) -> Receipt | None:
        return None if order is None else Receipt(text=order.key)

    @handler(desk)
    async def nothing(ctx: sdk.Context) -> None: ...

    @handler(desk)
    async def heard(ctx: sdk.Context) -> str | None:
        return ctx.request().headers.get("x-mine")

    @handler(desk)
    async def refuse(ctx: sdk.Context, order: Order) -> Receipt:
        raise Refused("no seats left", 410, "seats_sold_out", {"flight": "PD100"})

    @handler(desk, invocation_retry_policy=quick_death)
    async def crash(ctx: sdk.Context) -> None:
        raise ValueError("a bug")

    @handler(desk, ingress_private=True)
    async def private(ctx: sdk.Context) -> None: ...

    @handler(mirror, "exclusive")
    async def who(ctx: sdk.ObjectContext) -> str:
        return ctx.key()

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext, order: Order) -> Receipt:
        if order.number < 0:
            raise Refused("less than nothing", 422, "negative")
        return Receipt(text=await ctx.promise("word", type_hint=str).value())

    @handler(flow, "shared")
    async def release(ctx: sdk.WorkflowSharedContext, word: str) -> None:
        await ctx.promise("word", type_hint=str).resolve(word)

    functions = (serve, maybe, nothing, heard, refuse, crash, private, who, run, release)
    return [desk, mirror, flow], {function.__name__: function for function in functions}


async def test_calls_sends_and_idempotency_keys(restate, did):
    definitions, to = services(did)
    env = await restate.serve(*definitions)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        assert await ingress.call(to["serve"], Order(key=f"{key}-call", number=5)) == Receipt(text="no. 5")
        assert await ingress.call(to["nothing"]) is None
        assert await ingress.call(to["maybe"], Order(key="x")) == Receipt(text="x")
        assert await ingress.call(to["maybe"], None) is None

        # Calls with one idempotency key are one invocation, also when the first was a send.
        await ingress.send(to["serve"], Order(key=f"{key}-once"), idempotency_key=key)
        for _ in range(2):
            await ingress.call(to["serve"], Order(key=f"{key}-once"), idempotency_key=key)
        assert len(did.of(f"{key}-once")) == 1

        one, two = [await ingress.send(to["serve"], Order(key=f"{key}-twice")) for _ in range(2)]
        assert one != two

        for odd in ("a/b", "..", ".", "é ?#%", "../../Desk/nothing", "a:b", "\n", "x" * 2_000):
            assert await ingress.call(to["who"], key=odd) == odd


async def test_delayed_send_starts_later(restate, did):
    definitions, to = services(did)
    env = await restate.serve(*definitions)
    async with IngressClient(env.ingress) as ingress:
        key, start, delay = str(uuid4()), time.time(), 0.4
        await ingress.send(to["serve"], Order(key=f"{key}-later"), delay=timedelta(seconds=delay))
        await ingress.send(to["serve"], Order(key=f"{key}-past"), delay=timedelta(seconds=-5))

        async def at(name: str) -> float:
            async def seen() -> str | None:
                entries = did.of(f"{key}-{name}")
                return entries[0] if entries else None

            return float((await eventually(seen, what=name)).removeprefix("serve "))

        await at("past")
        assert await at("later") - start >= delay * 0.9


async def test_submit_poll_and_attach_workflow(restate, did):
    definitions, to = services(did)
    env = await restate.serve(*definitions)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        for question in (ingress.output(to["run"], key=key), ingress.attach(to["run"], key=key)):
            with pytest.raises(InvocationNotFound):
                await question
        id_ = await ingress.submit(to["run"], Order(key=key), key=key)
        assert id_.startswith("inv_")
        # A repeated submit returns the existing workflow, so it is safe to retry.
        assert await ingress.submit(to["run"], Order(key=key, number=5), key=key) == id_
        with pytest.raises(NotReady) as running:
            await ingress.output(to["run"], key=key)
        assert (running.value.status_code, running.value.source) == (470, "ingress")
        with pytest.raises(AlreadyStarted):
            await ingress.call(to["run"], Order(key=key), key=key)
        await ingress.call(to["release"], "open sesame", key=key)
        assert await ingress.attach(to["run"], key=key) == Receipt(text="open sesame")
        assert await ingress.output(to["run"], key=key) == Receipt(text="open sesame")


async def test_failed_workflow_raises_same_error_again(restate, did):
    definitions, to = services(did)
    env = await restate.serve(*definitions)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        await ingress.send(to["run"], Order(key=key, number=-1), key=key)
        for _ in range(2):
            with pytest.raises(IngressError) as failed:
                await ingress.attach(to["run"], key=key)
            error = failed.value
            assert (error.status_code, error.message, error.code) == (422, "less than nothing", "negative")
            assert error.source == "invocation"
        with pytest.raises(IngressError, match="less than nothing"):
            await ingress.output(to["run"], key=key)


async def test_errors_keep_source_code_and_metadata(restate, did):
    definitions, to = services(did)
    env = await restate.serve(*definitions)
    async with IngressClient(env.ingress) as ingress:

        async def failure(function: Any, *request: Any, **options: Any) -> IngressError:
            with pytest.raises(IngressError) as failed:
                await ingress.call(function, *request, **options)
            return failed.value

        error = await failure(to["refuse"], Order(key="x"))
        assert (error.status_code, error.source, error.message) == (410, "invocation", "no seats left")
        assert error.metadata == {"code": "seats_sold_out", "flight": "PD100"}

        error = await failure(to["private"])
        assert (error.status_code, error.source) == (400, "ingress")
        assert "not public" in error.message

        # The response of an exhausted handler contains a stack trace.
        error = await failure(to["crash"])
        assert (error.status_code, error.source) == (500, "invocation")
        assert (error.message, error.metadata) == ("ValueError('a bug')", {})
        assert "Traceback" not in repr(vars(error))

        error = await failure(Target("Desk", "serve", Order, Order), Order(key="x"))
        assert "Desk/serve: the response does not fit Order" in error.message


async def test_attach_by_id_or_idempotency_key(restate, did):
    definitions, to = services(did)
    env = await restate.serve(*definitions)
    async with IngressClient(env.ingress) as ingress:
        for idempotency_key in (f"desk:{uuid4()}", f"{uuid4()}!$&'()*+,;=:@-._~"):
            id_ = await ingress.send(to["serve"], Order(key="x", number=5), idempotency_key=idempotency_key)
            names = ({"invocation_id": id_}, {"idempotency_key": idempotency_key})
            for name in names:
                assert await ingress.attach(to["serve"], **name) == Receipt(text="no. 5")
                assert await ingress.output(to["serve"], **name) == Receipt(text="no. 5")
        later = await ingress.send(to["serve"], Order(key="x"), delay=timedelta(hours=1))
        with pytest.raises(NotReady):
            await ingress.output(to["serve"], invocation_id=later)
        id_ = await ingress.send(to["who"], key="a/b", idempotency_key=idempotency_key)
        assert await ingress.attach(to["who"], key="a/b", idempotency_key=idempotency_key) == "a/b"
        assert await ingress.attach(to["who"], invocation_id=id_) == "a/b"
        for unknown in (
            ingress.attach(to["serve"], idempotency_key=str(uuid4())),
            ingress.output(to["serve"], idempotency_key=str(uuid4())),
            ingress.attach(to["who"], key="a/b", idempotency_key=str(uuid4())),
        ):
            with pytest.raises(InvocationNotFound):
                await unknown


async def test_attach_by_any_idempotency_key(restate, did):
    definitions, to = services(did)
    env = await restate.serve(*definitions)
    async with IngressClient(env.ingress) as ingress:
        key = f"{uuid4()}/x y%"
        result = await ingress.call(to["serve"], Order(key="x"), idempotency_key=key)
        assert await ingress.attach(to["serve"], idempotency_key=key) == result
        assert await ingress.output(to["serve"], idempotency_key=key) == result


async def test_headers_and_cancel_reach_handler(restate, did):
    definitions, to = services(did)
    env = await restate.serve(*definitions)
    async with IngressClient(env.ingress, admin_url=env.admin) as ingress:
        assert await ingress.call(to["heard"], headers={"x-mine": "mine"}) == "mine"
        sent = await ingress.send(to["heard"], headers={"x-mine": "sent"})
        assert await ingress.attach(to["heard"], invocation_id=sent) == "sent"

        key = str(uuid4())
        id_ = await ingress.submit(to["run"], Order(key=key), key=key)
        await ingress.cancel(id_)
        with pytest.raises(IngressError) as cancelled:
            await ingress.attach(to["run"], key=key)
        assert (cancelled.value.status_code, cancelled.value.message) == (409, "cancelled")


@pytest.mark.restate_modes("http2")
async def test_error_names_unreachable_ingress(restate):
    (port,) = free_ports(1)
    async with IngressClient(f"http://127.0.0.1:{port}", max_attempts=2) as ingress:
        with pytest.raises(IngressError, match=rf"^no connection to the ingress at http://127.0.0.1:{port}") as failed:
            await ingress.call(Target("Desk", "serve", Order, Receipt), Order(key="x"))
    assert (failed.value.status_code, failed.value.source) == (0, None)


@pytest.mark.restate_modes("http2")
async def test_timeout_does_not_end_workflow(restate, did):
    definitions, to = services(did)
    env = await restate.serve(*definitions)
    key = str(uuid4())
    async with IngressClient(env.ingress, timeout=timedelta(milliseconds=300), max_attempts=1) as hasty:
        with pytest.raises(IngressError, match=r"did not answer in time \(ReadTimeout\)"):
            await hasty.call(to["run"], Order(key=key), key=key)
    async with IngressClient(env.ingress, max_attempts=1) as ingress:
        with pytest.raises(IngressError, match=r"did not answer in time \(ReadTimeout\)"):
            await ingress.attach(to["run"], key=key, timeout=timedelta(milliseconds=100))
        await ingress.call(to["release"], "late", key=key)
        assert await ingress.attach(to["run"], key=key) == Receipt(text="late")

"""Clients inside handlers: typed calls, errors, options and guardrails."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import IngressClient, ObjectClient, ServiceClient, Target, WorkflowClient, gather, handler, set_policy
from perdure.errors import ConfigurationError, IngressError, TerminalError, error_code
from tests.integration.callees import (
    Order,
    add,
    callees,
    calling,
    done,
    echo,
    many,
    note,
    nothing,
    refuse,
    release,
    slow_echo,
    total,
)
from tests.support import eventually


async def test_call_services_and_objects_with_types(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        receipt = await ServiceClient(ctx, echo).call(Order(key=key, number=5))
        receipts = await ServiceClient(ctx, many).call([Order(key="a"), Order(key="b")])
        void = await ServiceClient(ctx, nothing).call()
        one, two = ObjectClient(ctx, add, f"{key}/1"), ObjectClient(ctx, add, f"{key}/2")
        sums = [await one.call(1), await one.call(2), await two.call(5)]
        return [receipt.text, [item.text for item in receipts], void, sums, await ObjectClient(ctx, total, key).call()]

    assert await done(restate, did, work) == ["no. 5", "['a', 'b']", "None", "[1, 3, 5]", "0"]


async def test_concurrent_calls_keep_order_of_results(restate, did):
    # Not in the order in which the calls end.
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, slow_echo)
        calls = [client.call_async(Order(key=key, number=number)) for number in (150, 1, 75)]
        return [receipt.text for receipt in await gather(ctx, *calls)]

    assert await done(restate, did, work) == ["no. 150", "no. 1", "no. 75"]


async def test_call_returns_invocation_id(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, echo).call_async(Order(key=key))
        id_ = await call.invocation_id()
        return [id_.startswith("inv_"), (await call).text]

    assert await done(restate, did, work) == ["True", "no. 0"]


async def test_callee_error_keeps_code_message_metadata(restate, did):
    seen: list[TerminalError] = []

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        try:
            await ServiceClient(ctx, refuse).call(Order(key=key))
        except TerminalError as error:
            seen.append(error)
            raise
        return []

    with pytest.raises(IngressError) as failed:
        await done(restate, did, work)
    assert (failed.value.status_code, failed.value.message) == (410, "no seats left")
    assert failed.value.metadata == {"code": "seats_sold_out", "flight": "PD100"}
    assert {(error.status_code, error_code(error)) for error in seen} == {(410, "seats_sold_out")}


class NotAnOrder(BaseModel):
    something: str


async def test_reject_request_of_wrong_type_before_sending(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        did.add("attempt")
        return [await ServiceClient(ctx, echo).call(NotAnOrder(something="x"))]  # type: ignore[arg-type] # the mistake

    with pytest.raises(IngressError, match="cannot write a value of class NotAnOrder as Order") as failed:
        await done(restate, did, work)
    assert failed.value.metadata["code"] == "unwritable"
    assert did.all() == ["attempt"]


async def test_call_passes_key_and_headers(restate, did):
    # Key and headers reach the handler.
    ears = sdk.Service("Ears")

    @handler(ears)
    async def heard(ctx: sdk.Context) -> str | None:
        did.add(f"heard {ctx.request().headers.get('x-key')}/")
        return ctx.request().headers.get("x-mine")

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, heard)
        mine = {"x-mine": "mine", "x-key": key}
        once = [await client.call(headers=mine, idempotency_key=f"heard:{key}") for _ in range(2)]
        calls = [client.call_async(headers={"x-mine": "yours"}, idempotency_key=f"both:{key}") for _ in range(2)]
        ids = {await call.invocation_id() for call in calls}
        sent = await client.send(headers={"x-key": f"{key}-sent"})
        await sent.invocation_id()
        return [key, once, [await call for call in calls], len(ids), await client.call()]

    service, go = calling(work)
    env = await restate.serve(service, ears)
    async with IngressClient(env.ingress) as ingress:
        key, *answers = await ingress.call(go, str(uuid4()))
        assert answers == ["['mine', 'mine']", "['yours', 'yours']", "1", "None"]
        assert len(did.of(key)) == 1

        async def sent() -> bool:
            return bool(did.of(f"{key}-sent"))

        await eventually(sent, what="send")


async def test_response_of_wrong_type_is_terminal(restate, did):
    as_number = Target("Callees", "echo", Order, int)
    flow_as_number = Target("Flows", "run", Order, int)

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        did.add(f"attempt {key}/")
        flow, told = WorkflowClient(ctx, flow_as_number, key), []
        invocation_id = await flow.submit(Order(key=key))
        await flow.signal(release, "word")
        for wrong in (ServiceClient(ctx, as_number).call_async(Order(key=key)), flow.attach_future(invocation_id)):
            try:
                await wrong
            except TerminalError as error:
                told.append((error.message.splitlines()[0], error_code(error)))
        return told

    said = "invalid input: body: Input should be a valid integer. Caller and callee must use the same type"
    with pytest.raises(ConfigurationError, match="Callers calls Callees/echo, but its output does not fit"):
        await done(restate, did, work)
    assert await done(restate, did, work, check_targets=False) == [
        f"('Callees/echo: the response does not match int: {said}', 'unreadable')",
        f"('Flows/run: the response does not match int: {said}', 'unreadable')",
    ]


async def test_create_clients_from_sdk_functions(restate, did):
    raw = sdk.Service("RawCallee")

    @raw.handler()
    async def maybe(ctx: sdk.Context, number: int | None) -> int | None:
        return number or None

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, maybe)
        return [await client.call(5), await client.call(0), await client.call(None)]

    service, go = calling(work)
    env = await restate.serve(service, raw)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(go, "x") == ["5", "None", "None"]


@pytest.fixture
def _strict():
    set_policy("strict")
    yield
    set_policy(None)


@pytest.mark.restate_modes("http2")
@pytest.mark.usefixtures("_strict")
async def test_guardrails_check_idempotency_keys(restate, did):
    service = sdk.Service("Guarded")
    again = Target("Guarded", "go", str, str)

    @handler(service)
    async def go(ctx: sdk.Context, case: str) -> str:
        did.add(case)
        match case:
            case "same handler":
                await ServiceClient(ctx, again).call_async("stop", idempotency_key="k")
            case "timestamp":
                await ServiceClient(ctx, note).send(Order(key="k"), idempotency_key="order-1767323045")
            case "empty":
                await ServiceClient(ctx, note).send(Order(key="k"), idempotency_key="")
            case "uuid":
                await ServiceClient(ctx, note).send(
                    Order(key=case), idempotency_key="trip:12345678-1234-4234-9234-123456789012"
                )
            case "same handler, sent":  # several invocations may send, so a key is useful
                await ServiceClient(ctx, again).send("stop", idempotency_key="k")
            case "same handler, no key":
                return await ServiceClient(ctx, again).call("stop")
        return case

    env = await restate.serve(service, *callees(did))
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError) as redundant:
            await ingress.call(go, "same handler")
        assert redundant.value.message == (
            "framework guardrail failed [RedundantIdempotencyKey]: idempotency key 'k' is unnecessary for same-handler "
            "call to Guarded.go (Restate journaling already provides exactly-once execution)"
        )
        with pytest.raises(IngressError, match=r"\[TimestampInIdempotencyKey\]"):
            await ingress.call(go, "timestamp")
        with pytest.raises(IngressError, match="idempotency key cannot be empty"):
            await ingress.call(go, "empty")
        assert await ingress.call(go, "uuid") == "uuid"
        assert await ingress.call(go, "same handler, no key") == "stop"
        assert await ingress.call(go, "same handler, sent") == "same handler, sent"
    assert did.count("same handler") == 1
    assert did.count("timestamp") == 1


async def test_handlers_refuse_empty_key_and_unexpected_body(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        told = []
        for service, name, object_key, body in (
            ("Sums", "add", "", b"1"),
            ("Sums", "add", None, b"1"),
            ("Callees", "nothing", None, b"{}"),
            ("Callees", "nothing", None, b""),
        ):
            try:
                told.append(await ctx.generic_call(service, name, body, key=object_key))
            except TerminalError as error:
                told.append(f"{error.status_code} {error.message.partition(';')[0]}")
        return told

    assert await done(restate, did, work) == [
        "400 Sums/add: the key is ''",
        "400 Sums/add: the key is ''",
        "400 Callees/nothing takes no input: send an empty body",
        "b''",
    ]


async def test_handler_without_input_accepts_any_content_type(restate, did):
    env = await restate.serve(*callees(did))
    async with httpx.AsyncClient() as http:
        for content_type in (
            None,
            "application/json",
            "application/x-www-form-urlencoded",
            "text/plain; charset=utf-8",
        ):
            headers = {} if content_type is None else {"content-type": content_type}
            answer = await http.post(f"{env.ingress}/Callees/nothing", content=b"", headers=headers)
            assert (answer.status_code, answer.content) == (200, b""), content_type

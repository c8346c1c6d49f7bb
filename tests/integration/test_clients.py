"""Clients inside handlers: typed calls, sends and workflows, in all three modes."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import (
    AdminClient,
    IngressClient,
    ObjectClient,
    ServiceClient,
    State,
    Target,
    WorkflowClient,
    gather,
    race,
    run_with_retry,
    set_policy,
)
from perdure.admin import sql_text
from perdure.binding import handler
from perdure.errors import IngressError, InvalidInput, Refused, TerminalError, error_code
from tests.support import Recording, eventually


class Order(BaseModel):
    key: str
    number: int = 0


class Receipt(BaseModel):
    text: str


echo = Target("Callees", "echo", Order, Receipt)
slow_echo = Target("Callees", "slow_echo", Order, Receipt)
many = Target("Callees", "many", list[Order], list[Receipt])
nothing = Target("Callees", "nothing", type(None), type(None))
refuse = Target("Callees", "refuse", Order, Receipt)
note = Target("Callees", "note", Order, type(None))
add = Target("Sums", "add", int, int)
total = Target("Sums", "total", type(None), int)
wait_flow = Target("Flows", "run", Order, Receipt)
release = Target("Flows", "release", str, type(None))


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
    """Return a service whose handler does the work, and how to call it with a key that is new for each test."""
    service = sdk.Service("Callers")

    async def go(ctx: sdk.Context, key: str) -> list[str]:
        return [str(item) for item in await work(ctx, key)]

    handler(service)(go)
    return service, Target("Callers", "go", str, list[str])


async def done(restate, did: Recording, work: Any) -> list[str]:
    service, go = calling(work)
    env = await restate.serve(service, *callees(did))
    async with IngressClient(env.ingress) as ingress:
        return await ingress.call(go, str(uuid4()))


async def test_calls_are_typed_and_objects_have_their_own_state(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        receipt = await ServiceClient(ctx, echo).call(Order(key=key, number=5))
        receipts = await ServiceClient(ctx, many).call([Order(key="a"), Order(key="b")])
        void = await ServiceClient(ctx, nothing).call()
        one, two = ObjectClient(ctx, add, f"{key}/1"), ObjectClient(ctx, add, f"{key}/2")
        sums = [await one.call(1), await one.call(2), await two.call(5)]
        return [receipt.text, [item.text for item in receipts], void, sums, await ObjectClient(ctx, total, key).call()]

    assert await done(restate, did, work) == ["no. 5", "['a', 'b']", "None", "[1, 3, 5]", "0"]


async def test_calls_made_together_give_their_results_in_the_order_of_the_calls(restate, did):
    # The Go original took the order in which they ended, and lost the values.
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, slow_echo)
        calls = [client.call_async(Order(key=key, number=number)) for number in (150, 1, 75)]
        return [receipt.text for receipt in await gather(ctx, *calls)]

    assert await done(restate, did, work) == ["no. 150", "no. 1", "no. 75"]


async def test_a_call_knows_its_invocation(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, echo).call_async(Order(key=key))
        id_ = await call.invocation_id()
        return [id_.startswith("inv_"), (await call).text]

    assert await done(restate, did, work) == ["True", "no. 0"]


async def test_a_callees_terminal_error_comes_with_code_message_and_metadata(restate, did):
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


async def test_a_request_of_another_type_is_refused_before_anything_is_sent(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        did.add("attempt")
        return [await ServiceClient(ctx, echo).call(NotAnOrder(something="x"))]  # type: ignore[arg-type] # the mistake

    with pytest.raises(IngressError, match="a value of class NotAnOrder can't be written as Order") as failed:
        await done(restate, did, work)
    assert failed.value.metadata["code"] == "unwritable"
    assert did.all() == ["attempt"]


async def noted(did: Recording, key: str) -> float:
    async def seen() -> str | None:
        entries = did.of(key)
        return entries[0] if entries else None

    return float((await eventually(seen, what="note")).removeprefix("note "))


async def test_a_send_does_not_wait_and_a_delay_delays(restate, did):
    delay = timedelta(milliseconds=400)

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, note)
        await client.send(Order(key=f"{key}-now"))
        await client.send(Order(key=f"{key}-none"), delay=timedelta(0))
        await client.send(Order(key=f"{key}-past"), delay=timedelta(seconds=-5))
        sent = await client.send(Order(key=f"{key}-later"), delay=delay)
        return [key, await sent.invocation_id()]

    start = time.time()
    service, go = calling(work)
    env = await restate.serve(service, *callees(did))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key, later = await ingress.call(go, str(uuid4()))
        assert time.time() - start < delay.total_seconds() + 5
        rows = await admin.query(f"select target from sys_invocation where id = {sql_text(later)}")
        assert [row["target"] for row in rows] == ["Callees/note"]
        for when in ("now", "none", "past"):
            await noted(did, f"{key}-{when}")
        assert await noted(did, f"{key}-later") - start >= delay.total_seconds() * 0.9


async def test_sends_with_one_idempotency_key_start_one_invocation(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, note)
        sent = [await client.send(Order(key=key), idempotency_key=f"note:{key}") for _ in range(2)]
        return [key, *[await item.invocation_id() for item in sent]]

    service, go = calling(work)
    env = await restate.serve(service, *callees(did))
    async with IngressClient(env.ingress) as ingress:
        key, one, two = await ingress.call(go, str(uuid4()))
        assert one == two
        await noted(did, key)
        # Another invocation sends it too, and its call comes after both: nothing more was started.
        again, three, _ = await ingress.call(go, key)
        assert (again, three) == (key, one)
        assert len(did.of(key)) == 1


async def test_a_workflow_is_submitted_then_attached_to(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        flow = WorkflowClient(ctx, wait_flow, key)
        invocation_id = await flow.submit(Order(key=key))
        await WorkflowClient(ctx, release, key).call("open sesame")
        return [(await flow.attach(invocation_id)).text, (await flow.attach(invocation_id)).text]

    assert await done(restate, did, work) == ["open sesame", "open sesame"]


async def test_a_workflow_is_signalled_looked_at_and_waited_for_with_others(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        flow = WorkflowClient(ctx, wait_flow, key)
        invocation_id = await flow.submit(Order(key=key))
        again = await flow.submit(Order(key=key, number=7))  # it starts once for each key
        before = await flow.output(invocation_id, within=timedelta(milliseconds=20))
        result = flow.attach_future(invocation_id)
        first = await race(ctx, result, ctx.sleep(timedelta(milliseconds=20)))
        answer = await flow.signal(release, "open sesame")
        together = await gather(ctx, result, flow.attach_future(invocation_id))
        after = await flow.output(invocation_id, within=timedelta(seconds=10))
        return [again == invocation_id, before, first.index, answer, [item.text for item in together], after]

    assert await done(restate, did, work) == [
        "True",
        "WorkflowOutput(value=None, ready=False)",
        "1",
        "None",
        "['open sesame', 'open sesame']",
        "WorkflowOutput(value=Receipt(text='open sesame'), ready=True)",
    ]


async def test_an_output_of_none_is_told_from_none_yet_and_a_failure_is_raised(restate, did):
    flow = sdk.Workflow("Voids")

    @handler(flow, "main", name="run")
    async def run(ctx: sdk.WorkflowContext, number: int) -> None:
        if number < 0:
            raise Refused("less than nothing", 422, "negative")

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        good, bad = WorkflowClient(ctx, run, f"{key}-good"), WorkflowClient(ctx, run, f"{key}-bad")
        output = await good.output(await good.submit(1), within=timedelta(seconds=10))
        try:
            await bad.output(await bad.submit(-1), within=timedelta(seconds=10))
        except TerminalError as error:
            return [output, error.message, error_code(error)]
        return [output, "no error"]

    service, go = calling(work)
    env = await restate.serve(service, flow)
    async with IngressClient(env.ingress) as ingress:
        expected = ["WorkflowOutput(value=None, ready=True)", "less than nothing", "negative"]
        assert await ingress.call(go, str(uuid4())) == expected


async def test_a_signal_goes_to_the_same_workflow_only(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        return [await WorkflowClient(ctx, wait_flow, key).signal(echo, Order(key=key))]

    with pytest.raises(IngressError, match="a client of Flows/run can't signal Callees/echo") as refused:
        await done(restate, did, work)
    assert (refused.value.status_code, refused.value.metadata["field"]) == (400, "handler")


async def test_a_call_takes_its_options(restate, did):
    # DEFECT of the Go original: Call ignored them.
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


async def test_a_call_is_cancelled_by_its_future(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        call = WorkflowClient(ctx, wait_flow, key).call_async(Order(key=key))
        await call.cancel()
        try:
            return [await call]
        except TerminalError as error:
            return [error.status_code, error.message]

    assert await done(restate, did, work) == ["409", "cancelled"]


async def test_a_send_is_cancelled_by_its_handle_also_before_it_starts(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        sent = await ServiceClient(ctx, note).send(Order(key=key), delay=timedelta(hours=1))
        await sent.cancel()
        try:
            await ctx.attach_invocation(await sent.invocation_id())
        except TerminalError as error:
            return [key, error.status_code, error.message]
        return []

    key, *ended = await done(restate, did, work)
    # The second once it is gone without a trace, as of something that nobody can ask for; else this waited for an hour.
    assert ended in (["409", "cancelled"], ["404", "not found"])
    assert did.of(key) == []


async def test_a_response_of_another_type_is_a_terminal_error_and_not_retried_for_ever(restate, did):
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

    said = "invalid input: body: Input should be a valid integer. Caller and callee must name the same type"
    assert await done(restate, did, work) == [
        f"('Callees/echo: the response does not fit int: {said}', 'unreadable')",
        f"('Flows/run: the response does not fit int: {said}', 'unreadable')",
    ]


async def test_attaching_to_a_workflow_that_failed_raises_its_error(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        flow = WorkflowClient(ctx, wait_flow, key)
        return [await flow.attach(await flow.submit(Order(key=key, number=-1)))]

    with pytest.raises(IngressError) as failed:
        await done(restate, did, work)
    assert (failed.value.status_code, failed.value.message, failed.value.code) == (422, "less than nothing", "negative")


async def test_an_id_that_no_invocation_can_have_is_refused_at_once(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        flow = WorkflowClient(ctx, wait_flow, key)
        real, refused = await flow.submit(Order(key=key, number=1)), list[object]()
        for id_ in ("", "inv_bogus", real[:-1], real + "A", real.replace("inv_1", "inv_2")):
            for ask in (flow.attach, flow.output):
                try:
                    await ask(id_)
                except InvalidInput as error:
                    refused.append(error.status_code)
        return refused

    assert await done(restate, did, work) == ["400"] * 10


async def test_clients_are_made_from_functions_of_the_sdks_own_decorators(restate, did):
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


# --- guardrails ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _strict():
    set_policy("strict")
    yield
    set_policy(None)


@pytest.mark.restate_modes("http2")
@pytest.mark.usefixtures("_strict")
async def test_guardrails_of_keys(restate, did):
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
            case "same handler, sent":  # a send may come from several invocations, so its key is of use
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

"""Workflow clients inside handlers: submit, signal, output and attach."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk

from perdure import IngressClient, WorkflowClient, gather, handler, race
from perdure.errors import IngressError, InvalidInput, Refused, TerminalError, error_code
from tests.integration.callees import Order, calling, done, echo, release, wait_flow


async def test_submit_and_attach_to_workflow(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        flow = WorkflowClient(ctx, wait_flow, key)
        invocation_id = await flow.submit(Order(key=key))
        await WorkflowClient(ctx, release, key).call("open sesame")
        return [(await flow.attach(invocation_id)).text, (await flow.attach(invocation_id)).text]

    assert await done(restate, did, work) == ["open sesame", "open sesame"]


async def test_signal_query_and_await_workflow(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        flow = WorkflowClient(ctx, wait_flow, key)
        invocation_id = await flow.submit(Order(key=key))
        again = await flow.submit(Order(key=key, number=7))  # a workflow starts once per key
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


async def test_output_distinguishes_none_pending_and_failure(restate, did):
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


async def test_reject_signal_to_another_workflow(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        return [await WorkflowClient(ctx, wait_flow, key).signal(echo, Order(key=key))]

    with pytest.raises(IngressError, match="a client of Flows/run cannot signal Callees/echo") as refused:
        await done(restate, did, work)
    assert (refused.value.status_code, refused.value.metadata["field"]) == (400, "handler")


async def test_attach_raises_error_of_workflow(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        flow = WorkflowClient(ctx, wait_flow, key)
        return [await flow.attach(await flow.submit(Order(key=key, number=-1)))]

    with pytest.raises(IngressError) as failed:
        await done(restate, did, work)
    assert (failed.value.status_code, failed.value.message, failed.value.code) == (422, "less than nothing", "negative")


async def test_reject_malformed_invocation_id(restate, did):
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

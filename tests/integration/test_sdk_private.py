"""Private parts of the SDK that `perdure._runtime.sdk` uses."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as restate_sdk
from restate.exceptions import TerminalError

from perdure import IngressClient
from perdure._runtime import sdk
from perdure.testing.served import Mode
from tests.integration.raw_sdk import facts, go

pytestmark = pytest.mark.restate_modes("all")


async def test_read_handler_of_context(restate):
    service, thing, flow = (
        restate_sdk.Service("InfoService"),
        restate_sdk.VirtualObject("InfoObject"),
        restate_sdk.Workflow("InfoFlow"),
    )

    async def describe(ctx: Any) -> str:
        info = sdk.handler_info(ctx)
        return f"{info} {info.kind} writes={info.writes_state} key={sdk.has_key(ctx)}"

    @service.handler()
    async def plain(ctx: restate_sdk.Context) -> str:
        return await describe(ctx)

    @thing.handler()
    async def exclusive(ctx: restate_sdk.ObjectContext) -> str:
        return await describe(ctx)

    @thing.handler(kind="shared")
    async def shared(ctx: restate_sdk.ObjectSharedContext) -> str:
        return await describe(ctx)

    @flow.main()
    async def run(ctx: restate_sdk.WorkflowContext) -> str:
        return await describe(ctx)

    @flow.handler()
    async def look(ctx: restate_sdk.WorkflowSharedContext) -> str:
        return await describe(ctx)

    env = await restate.serve(service, thing, flow)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        assert await ingress.call(plain) == "InfoService/plain service writes=False key=False"
        assert await ingress.call(exclusive, key=key) == "InfoObject/exclusive exclusive writes=True key=True"
        assert await ingress.call(shared, key=key) == "InfoObject/shared shared writes=False key=True"
        assert await ingress.call(run, key=key) == "InfoFlow/run workflow writes=True key=True"
        assert await ingress.call(look, key=key) == "InfoFlow/look shared writes=False key=True"


async def test_detect_replay(restate, did):
    async def work(ctx: restate_sdk.Context, key: str) -> str:
        did.add(f"before {sdk.is_replaying(ctx)}")
        await ctx.sleep(timedelta(milliseconds=20))
        did.add(f"after {sdk.is_replaying(ctx)}")
        return "done"

    env = await restate.serve(facts(work))
    async with IngressClient(env.ingress) as ingress:
        await ingress.call(go, "x")
    if restate.mode is Mode.HTTP2:
        assert did.all() == ["before False", "after False"]
    else:
        assert did.all() == ["before False", "before True", "after False"]


@pytest.mark.restate_modes("http2")
async def test_repeat_wait_for_invocation_id(restate):
    async def work(ctx: restate_sdk.Context, key: str) -> str:
        if key == "callee":
            return "done"
        call = ctx.generic_call("Facts", "go", b'"callee"')
        waiting = call.invocation_id_future  # type: ignore[attr-defined] # the private part that _sdk uses
        waiting.task = asyncio.get_running_loop().create_future()
        waiting.task.set_exception(TerminalError("cancelled", 409))  # as after a cancel of the caller
        try:
            await call.invocation_id()
        except TerminalError:
            sdk.retry_invocation_id(call)
        return await call.invocation_id()

    env = await restate.serve(facts(work))
    async with IngressClient(env.ingress) as ingress:
        assert (await ingress.call(go, "caller")).startswith("inv_")


def test_read_types_of_sdk_handlers():
    service = restate_sdk.Service("Facts")

    @service.handler("renamed")
    async def handler(ctx: restate_sdk.Context, number: int) -> str | None:
        return str(number)

    assert sdk.sdk_handler_types(handler) == ("service", "Facts", "renamed", int, str | None)
    assert sdk.sdk_handler_types(asyncio.sleep) is None
    assert sdk.sdk_handler_types(5) is None

"""Log lines of handlers: invocation, trace and silence during replays."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import httpx
import pytest
import restate as sdk

from perdure import (
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    ServiceClient,
    handler,
    run_with_retry,
    set_policy,
)
from perdure.errors import IngressError, Refused
from perdure.guardrails import GuardrailPolicy
from perdure.observability.hooks import add_hooks, default_hooks, remove_hooks
from perdure.observability.logging import get_logger
from tests.support import lines

log = get_logger("tests.logging")
TICK = timedelta(milliseconds=1)
TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_lines_have_invocation_and_are_logged_once(restate, logged):
    thing = sdk.VirtualObject("LoggingThing")

    @handler(thing, "exclusive")
    async def go(ctx: sdk.ObjectContext) -> str:
        for number in range(3):
            log.info("before", number=number)
            await run_with_retry(ctx, "work", lambda number=number: log.info("inside", number=number))
            await ctx.sleep(TICK)
        log.info("last")
        return ctx.request().id

    env = await restate.serve(thing)
    key = uuid4().hex
    async with httpx.AsyncClient() as http:
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        answer = await http.post(f"{env.ingress}/LoggingThing/{key}/go", headers=headers)
    expected = {
        "invocation_id": answer.json(),
        "service": "LoggingThing",
        "handler": "go",
        "key": key,
        "trace_id": TRACE,
        "logger": "tests.logging",
        "level": "info",
    }
    assert [line["number"] for line in lines(logged, event="inside", **expected)] == [0, 1, 2]
    assert len(lines(logged, event="last", **expected)) == 1
    # Code after the last journal entry of an attempt is not a replay and may run again.
    before = [line["number"] for line in lines(logged, event="before", **expected)]
    assert sorted(set(before)) == [0, 1, 2]
    assert all(before.count(number) <= 2 for number in before)


async def test_default_hooks_log_once(restate, logged):
    service = DataPlaneService("LoggingHooks", public=True)

    @service.handler()
    async def go(ctx: DataPlaneContext, fails: bool) -> None:
        def work() -> None:
            if fails:
                raise Refused("no seats left")

        await ctx.run("one", lambda: None)
        await ctx.run("two", work)

    hooks = default_hooks()
    add_hooks(hooks)
    try:
        env = await restate.serve(service)
        async with IngressClient(env.ingress) as ingress:
            await ingress.call(go, False)
            with pytest.raises(IngressError):
                await ingress.call(go, True)
    finally:
        remove_hooks(hooks)
    started = lines(logged, event="invocation started", service="LoggingHooks", handler="go")
    assert len(started) == 2
    first, second = (
        lines(logged, event="invocation ended", invocation_id=line["invocation_id"])[0]["error"] for line in started
    )
    assert (first, second) == (None, "no seats left")
    failures = lines(logged, event="attempt failed", service="LoggingHooks")
    assert [(line["run"], line["terminal"], line["level"]) for line in failures] == [
        ("two", True, "error"),
        (None, True, "error"),
    ]


async def test_guardrail_policy_warn_and_strict(restate, logged):
    thing = sdk.Service("LoggingGuardrails")

    @handler(thing)
    async def nothing(ctx: sdk.Context) -> None: ...

    @handler(thing)
    async def go(ctx: sdk.Context) -> None:
        await ServiceClient(ctx, nothing).send(idempotency_key=f"order-1767323045:{ctx.request().id}")
        for _ in range(2):
            await ctx.sleep(TICK)

    env = await restate.serve(thing)
    try:
        async with IngressClient(env.ingress) as ingress:
            set_policy(GuardrailPolicy.WARN)
            await ingress.call(go)
            set_policy(GuardrailPolicy.STRICT)
            with pytest.raises(IngressError) as refused:
                await ingress.call(go)
    finally:
        set_policy(None)
    (warned,) = lines(logged, event="framework guardrail violation (permissive mode)", service="LoggingGuardrails")
    assert (warned["check"], warned["handler"]) == ("TimestampInIdempotencyKey", "go")
    error = refused.value
    assert (error.status_code, error.code) == (400, "guardrail")
    assert error.message.startswith("framework guardrail failed [TimestampInIdempotencyKey]: idempotency key may")

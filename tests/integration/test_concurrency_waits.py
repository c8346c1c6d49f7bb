"""All waits of the SDK use the method that branches intercept. Detects waits that an upgrade adds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate

from perdure import IngressClient, handler, map_concurrent
from perdure._runtime import sdk

pytestmark = pytest.mark.restate_modes("all")

ONE_ATTEMPT = restate.InvocationRetryPolicy(max_attempts=1, on_max_attempts="kill")
TICK = timedelta(milliseconds=2)


def ways_to_wait(ctx: Any, callee: Any) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return all kinds of waits of a handler, by name."""
    futures: dict[str, Callable[[], Any]] = {
        "sleep": lambda: ctx.sleep(TICK),
        "run": lambda: ctx.run_typed("run", lambda: 1, restate.RunOptions(type_hint=int)),
        "time": ctx.time,
        "call": lambda: ctx.service_call(callee, 5),
    }

    async def invocation_id_of_a_call() -> None:
        await ctx.service_call(callee, 5).invocation_id()

    async def invocation_id_of_a_send() -> None:
        await ctx.service_send(callee, 5).invocation_id()

    async def attach() -> None:
        await ctx.attach_invocation(await ctx.service_call(callee, 5).invocation_id(), type_hint=int)

    async def awakeable() -> None:
        id_, future = ctx.awakeable(type_hint=int)
        ctx.resolve_awakeable(id_, 5)
        await future

    async def promise() -> None:
        await ctx.promise("word", type_hint=str).resolve("word")
        await ctx.promise("word", type_hint=str).value()

    async def peek() -> None:
        await ctx.promise("none", type_hint=str).peek()

    async def all_of() -> None:
        await restate.gather(ctx.sleep(TICK), ctx.sleep(TICK))

    async def first_of() -> None:
        await restate.select(first=ctx.sleep(TICK), second=ctx.sleep(timedelta(hours=1)))

    async def completed() -> None:
        await restate.wait_completed(ctx.sleep(TICK), ctx.sleep(TICK))

    def awaiting(make: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
        async def wait() -> None:
            await make()

        return wait

    steps = (
        invocation_id_of_a_call, invocation_id_of_a_send, attach, awakeable, promise, peek, all_of, first_of, completed,
    )  # fmt: skip
    return {name: awaiting(make) for name, make in futures.items()} | {step.__name__: step for step in steps}


def waiting(
    how: Callable[[Any, dict[str, Callable[[], Awaitable[Any]]]], Awaitable[list[str]]],
) -> tuple[list[Any], Any]:
    service, flow = restate.Service("Awaited"), restate.Workflow("Waiting")

    @service.handler()
    async def callee(ctx: restate.Context, number: int) -> int:
        return number

    @handler(flow, "main", invocation_retry_policy=ONE_ATTEMPT)
    async def run(ctx: restate.WorkflowContext) -> list[str]:
        return await how(ctx, ways_to_wait(ctx, callee))

    return [service, flow], run


async def test_all_waits_use_one_sdk_method(restate):
    async def how(ctx: Any, ways: dict[str, Callable[[], Awaitable[Any]]]) -> list[str]:
        sdk.intercept_waits(ctx)
        past = []
        for name, wait in ways.items():
            taken: list[Any] = []

            async def take(what: Any, taken: list[Any] = taken) -> None:
                taken.append(what)
                sdk.wait_interceptor.set(None)  # of the task in which the SDK waits, or of this task
                await sdk.wait_for_first(ctx, [what])

            sdk.wait_interceptor.set(take)
            await wait()
            sdk.wait_interceptor.set(None)
            if not taken:
                past.append(name)
        return past

    services, run = waiting(how)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(run, key=str(uuid4())) == []


async def test_combine_all_kinds_of_waits(restate):
    async def how(ctx: Any, ways: dict[str, Callable[[], Awaitable[Any]]]) -> list[str]:
        async def wait(name: str, _: int) -> str:
            for _step in range(3):
                if name != "promise":  # it is resolved once
                    await ways[name]()
            await ways[name]()
            return name

        assert await map_concurrent(ctx, ways, wait, limit=len(ways)) == list(ways)
        return await map_concurrent(ctx, [name for name in ways if name != "promise"], wait, limit=3)

    services, run = waiting(how)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:
        names = await ingress.call(run, key=str(uuid4()))
    assert len(names) == 12

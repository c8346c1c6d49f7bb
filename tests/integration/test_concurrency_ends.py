"""Early ends of concurrent operations: failure, cancel, misuse."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    IngressClient,
    RunConfig,
    ServiceClient,
    fan_out,
    fan_out_fail,
    for_each,
    gather,
    map_concurrent,
    process_batch,
    race,
    run_async,
    run_with_retry,
    wait_for_external_signal,
)
from perdure.errors import Cancelled, IngressError, RunExhausted, TerminalError
from tests.integration.concurrent_jobs import Case, Job, Work, after, case, cases, lasting, ms, square
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("all")


async def test_failure_names_location_and_keeps_details(restate, did):
    seen: dict[str, TerminalError] = {}

    def job(key: str, number: int, after: int = 0) -> Job:
        return Job(key=key, number=number, after=ms(after))

    async def each(ctx: sdk.Context, key: str) -> list[object]:
        await for_each(ctx, [1, 2, -3, 4], lambda number, _: ServiceClient(ctx, after).call(job(key, number)))
        return []

    async def batch(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, after).call_async
        return await process_batch(ctx, [1, 2, 3, -4, 5], lambda number, _: call(job(key, number)), size=2)

    async def out(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, after).call_async
        # The last operation fails first.
        return await fan_out_fail(ctx, [call(job(key, -1, 3000)), call(job(key, 2)), call(job(key, -3, 20))])

    async def all_of(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, after).call_async
        return list(await gather(ctx, call(job(key, 1)), call(job(key, -2, 40)), call(job(key, -3))))

    async def first(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, after).call_async
        return [await race(ctx, call(job(key, 1, 3000)), call(job(key, -2)))]

    async def exhausted(ctx: sdk.Context, key: str) -> list[object]:
        def broken() -> int:
            raise ValueError("broken")

        try:
            await fan_out_fail(ctx, [run_async(ctx, RunConfig("broken", max_retries=0), broken)])
        except TerminalError as error:
            seen["exhausted"] = error
            raise
        return []

    env = await restate.serve(
        *cases(did, each=each, batch=batch, out=out, all_of=all_of, first=first, exhausted=exhausted)
    )
    async with IngressClient(env.ingress) as ingress:

        async def failed(name: str) -> IngressError:
            with pytest.raises(IngressError) as error:
                await ingress.call(case, Case(key=str(uuid4()), name=name))
            return error.value

        refused = {"code": "negative"}
        for name, message, facts in (
            ("each", "foreach failed at index 2: no -3", {"index": "2", "number": "-3"}),
            ("batch", "batch processing failed at chunk 1: no -4", {"index": "3", "chunk": "1", "number": "-4"}),
            ("out", "fanout operation 2 failed: no -3", {"index": "2", "number": "-3"}),
            ("all_of", "gather future error at index 1: no -2", {"index": "1", "number": "-2"}),
            ("first", "race operation 1 failed: no -2", {"index": "1", "number": "-2"}),
        ):
            error = await failed(name)
            assert (error.status_code, error.message, error.metadata) == (410, message, {**refused, **facts})
        error = await failed("exhausted")
        assert error.message.startswith("fanout operation 0 failed: run exhausted retries (1 attempts) for broken")
        assert error.metadata == {"code": "run_exhausted", "run": "broken", "index": "0"}
    assert isinstance(seen["exhausted"], RunExhausted)
    assert isinstance(seen["exhausted"].__cause__, RunExhausted)
    assert str(seen["exhausted"]) == seen["exhausted"].message


async def test_cancel_of_caller_is_no_item_failure(restate, did):
    # A cancel must not count as one error among others.
    def work(take: Callable[[sdk.Context, list[Any]], Awaitable[object]], *, start: bool = True) -> Work:
        async def run(ctx: sdk.Context, key: str) -> list[object]:
            call = ServiceClient(ctx, lasting).call_async
            jobs: list[Any] = [Job(key=key, number=number) for number in range(2)]
            try:
                await take(ctx, [call(job) for job in jobs] if start else [(call, job) for job in jobs])
            except TerminalError as error:
                did.add(f"{key}-end/{type(error).__name__} {error.message} {isinstance(error, Cancelled)}")
                raise
            return ["not cancelled"]

        return run

    async def body(pair: Any, _: int) -> int:
        call, job = pair
        return await call(job)

    works = {
        "fan_out": work(fan_out),
        "fan_out_fail": work(fan_out_fail),
        "gather": work(lambda ctx, calls: gather(ctx, *calls)),
        "race": work(lambda ctx, calls: race(ctx, *calls, cancel_losers=True)),
        "map_concurrent": work(lambda ctx, pairs: map_concurrent(ctx, pairs, body), start=False),
        "process_batch": work(lambda ctx, pairs: process_batch(ctx, pairs, body), start=False),
        "foreach": work(lambda ctx, pairs: for_each(ctx, pairs, body), start=False),
    }
    env = await restate.serve(*cases(did, **works))
    async with IngressClient(env.ingress, admin_url=env.admin) as ingress:
        keys = {name: str(uuid4()) for name in works}
        ids = {name: await ingress.send(case, Case(key=key, name=name)) for name, key in keys.items()}
        for name, key in keys.items():

            async def begun(key: str = key, calls: int = 1 if name == "foreach" else 2) -> bool:
                return len(set(did.of(key))) >= calls

            await eventually(begun, what=f"calls of {name}")
            await ingress.cancel(ids[name])
        for name, key in keys.items():
            with pytest.raises(IngressError) as cancelled:
                await ingress.attach(case, invocation_id=ids[name])
            assert cancelled.value.status_code == 409
            message = "cancelled" if name == "foreach" else f"cancelled during {name}"
            assert cancelled.value.message == message
            assert set(did.of(f"{key}-end")) == {f"Cancelled {message} True"}


async def test_cancel_waits_for_running_action(restate, did):
    # Otherwise the action could overtake its compensation, see `run_with_retry`.
    begun, may_end = threading.Event(), threading.Event()

    def act(key: str) -> None:
        begun.set()
        assert may_end.wait(20), "the test never let the action end"
        did.add(f"{key}/acted")

    async def acting(ctx: sdk.Context, key: str) -> list[object]:
        async def body(number: int, _: int) -> None:
            if number:
                await wait_for_external_signal(ctx, int).result()
            await run_with_retry(ctx, RunConfig("act", max_retries=0), act, key)

        try:
            return list(await map_concurrent(ctx, [0, 1], body))
        except Cancelled:
            did.add(f"{key}/ended")
            raise

    env = await restate.serve(*cases(did, acting=acting))
    async with IngressClient(env.ingress, admin_url=env.admin) as ingress:
        key = str(uuid4())
        id_ = await ingress.send(case, Case(key=key, name="acting"))

        async def acts() -> bool:
            return begun.is_set()

        await eventually(acts, what="action")
        await ingress.cancel(id_)
        may_end.set()
        with pytest.raises(IngressError, match="cancelled during map_concurrent"):
            await ingress.attach(case, invocation_id=id_)
    assert did.of(key)[0] == "acted"
    assert set(did.of(key)) == {"acted", "ended"}


async def test_reject_misuse_with_alternative(restate, did):
    async def coroutine(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, square)
        job = Job(key=key, number=1)
        return list(await gather(ctx, client.call_async(job), client.call(job), client.call(job)))  # type: ignore[call-overload]

    async def no_operation(ctx: sdk.Context, key: str) -> list[object]:
        return [await race(ctx)]

    async def no_limit(ctx: sdk.Context, key: str) -> list[object]:
        return await map_concurrent(ctx, [1], lambda number, _: ctx.sleep(ms(number)), limit=0)

    async def no_size(ctx: sdk.Context, key: str) -> list[object]:
        return await process_batch(ctx, [1], lambda number, _: ctx.sleep(ms(number)), size=0)

    async def inside_run(ctx: sdk.Context, key: str) -> list[object]:
        # The context cannot be used inside a run.
        async def action() -> None:
            await map_concurrent(ctx, [1], lambda number, _: ctx.sleep(ms(number)))

        await run_with_retry(ctx, "outer", action)
        return []

    async def asyncios(ctx: sdk.Context, key: str) -> list[object]:
        async def body(number: int, _: int) -> list[int]:
            job = Job(key=key, number=number)
            return await asyncio.gather(ServiceClient(ctx, square).call(job), ServiceClient(ctx, square).call(job))

        return list(await map_concurrent(ctx, [1, 2], body))

    works: dict[str, Work] = {
        "coroutine": coroutine, "no_operation": no_operation, "no_limit": no_limit, "no_size": no_size,
        "inside_run": inside_run, "asyncios": asyncios,
    }  # fmt: skip
    env = await restate.serve(*cases(did, **works))
    not_a_future = (
        "operation 1 is the coroutine _Client.call, not a durable future. Start the operation with call_async"
    )
    async with IngressClient(env.ingress) as ingress:
        for name, status, code, message in (
            ("coroutine", 500, "not_durable", not_a_future),
            ("no_operation", 400, "invalid_input", "race requires at least one future"),
            ("no_limit", 400, "invalid_input", "limit must be 1 or more, not 0"),
            ("no_size", 400, "invalid_input", "size must be 1 or more, not 0"),
            ("asyncios", 500, "not_deterministic", "Use perdure's gather, fan_out or race"),
            ("inside_run", 500, "context_inside_run", "map_concurrent was used inside the run 'outer'"),
        ):  # fmt: skip
            with pytest.raises(IngressError, match=message) as refused:
                await ingress.call(case, Case(key="", name=name))
            assert (refused.value.status_code, refused.value.code) == (status, code)

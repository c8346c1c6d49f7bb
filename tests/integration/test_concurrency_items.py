"""Functions over items: sequential, in chunks, concurrent up to a limit."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
import restate as sdk

from perdure import (
    ObjectClient,
    ServiceClient,
    for_each,
    gather,
    map_concurrent,
    process_batch,
    run_async,
    run_with_retry,
)
from tests.integration.concurrent_jobs import Crowd, Job, after, append, crowded, done, failure, ms, square

pytestmark = pytest.mark.restate_modes("all")


async def test_multi_step_functions_are_deterministic(restate, did):
    # Each item uses calls, runs, timers, state and a nested map differently; the first item ends last.
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        worker = ServiceClient(ctx, after)

        async def inner(number: int, index: int) -> int:
            await ctx.sleep(ms(number % 3))
            return await ServiceClient(ctx, square).call(Job(key=key, number=number + index))

        async def steps(number: int, index: int) -> str:
            first = await worker.call(Job(key=key, number=number, after=ms(60 - 10 * number)))
            for step in range(number % 3):
                await run_with_retry(ctx, f"step {step}", did.add, f"{key}-{index}/{step}")
                await ctx.sleep(ms(1))
            both = await gather(
                ctx, ctx.sleep(ms(3), "pause"), run_async(ctx, "twice", lambda: 2 * number, returns=int)
            )
            squares = await map_concurrent(ctx, range(number), inner, limit=2)
            kept = await ObjectClient(ctx, append, f"{key}/{number % 2}").call(number)
            return f"{first} {both[1]} {squares} {number in kept}"

        results = await map_concurrent(ctx, range(6), steps, limit=3)
        return [*results, key]

    *results, key = await done(restate, did, work)
    squares = [[(number + index) ** 2 for number, index in zip(range(n), range(n), strict=True)] for n in range(6)]
    assert results == [f"{number} {2 * number} {squares[number]} True" for number in range(6)]
    for index in range(6):
        assert did.of(f"{key}-{index}") == [str(step) for step in range(index % 3)]


async def test_runs_see_context_variables_of_their_item(restate, did):
    tenant: ContextVar[str] = ContextVar("tenant")

    async def read() -> str:
        return tenant.get()

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        async def steps(number: int, index: int) -> str:
            tenant.set(f"tenant {number}")
            await ctx.sleep(ms(10 - number))
            started = run_async(ctx, "thread", tenant.get, returns=str)
            return f"{await run_with_retry(ctx, 'coroutine', read)}, {await started}"

        return [*await map_concurrent(ctx, range(5), steps, limit=3), key]

    *results, _ = await done(restate, did, work)
    assert results == [f"tenant {number}, tenant {number}" for number in range(5)]


@pytest.mark.parametrize("limit", [1, 3])
async def test_use_limit_of_concurrent_items(restate, did, limit):
    crowd = Crowd(limit, everyone=8)

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, crowded)
        return await map_concurrent(  # a function may also return the future of one call
            ctx, range(8), lambda number, index: client.call_async(Job(key=key, number=number + index)), limit=limit
        )

    assert await done(restate, did, work, crowd) == [str(2 * number) for number in range(8)]
    assert crowd.most == limit


async def test_failing_item_starts_no_other(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        async def body(number: int, index: int) -> int:
            await run_with_retry(ctx, "begin", did.add, f"{key}/begins {index}")
            result = await ServiceClient(ctx, after).call(Job(key=key, number=number, after=ms(1 + 40 * index)))
            await run_with_retry(ctx, "end", did.add, f"{key}/ends {index}")
            return result

        did.add(f"key {key}/")
        return await map_concurrent(ctx, [-7, 1, 2, 3], body, limit=2)

    error = await failure(restate, did, work)
    assert (error.status_code, error.message) == (410, "map operation 0 failed: no -7")
    assert error.metadata == {"code": "negative", "number": "-7", "index": "0"}
    (key,) = {entry.removeprefix("key ").rstrip("/") for entry in did.all() if entry.startswith("key ")}
    assert sorted(entry for entry in did.of(key) if "key" not in entry) == ["begins 0", "begins 1", "ends 1"]


async def test_for_each_and_batches_are_sequential(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        listed = ObjectClient(ctx, append, key)
        seen: list[str] = []

        async def body(letter: str, index: int) -> None:
            await run_with_retry(ctx, "note", did.add, f"{key}/{letter}{index}")
            seen.append(letter)

        await for_each(ctx, "abc", body)
        batched = await process_batch(ctx, range(5), lambda number, _: listed.call_async(number), size=2)
        nothing = [
            await map_concurrent(ctx, [], body),
            await process_batch(ctx, [], body),
            await for_each(ctx, [], body),
        ]
        return [key, "".join(seen), batched, nothing]

    key, letters, batched, nothing = await done(restate, did, work)
    assert letters == "abc"
    assert did.of(key) == ["a0", "b1", "c2"]
    assert batched == "[[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]"
    assert nothing == "[[], [], None]"

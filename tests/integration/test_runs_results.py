"""Actions and results of runs."""

from __future__ import annotations

import asyncio
import functools
import threading
from datetime import timedelta
from typing import Any

import restate as sdk
from pydantic import BaseModel

from perdure import run_async, run_with_retry
from perdure.errors import Refused
from tests.integration.run_cases import QUICK, failing, failure_of, result_of


class Part(BaseModel):
    name: str
    sizes: list[int] = []


def part(name: str) -> Part:
    return Part(name=name)


async def part_async(name: str) -> Part:
    await asyncio.sleep(0)
    return Part(name=name)


def parts(count: int) -> list[Part]:
    return [Part(name=str(number), sizes=[number]) for number in range(count)]


def nothing() -> None: ...


class Maker:
    async def __call__(self, name: str) -> Part:
        return Part(name=name)

    def method(self, name: str) -> Part:
        return Part(name=name)


async def test_actions_return_typed_results(restate):
    maker = Maker()
    seen: list[Any] = []

    async def work(ctx: sdk.Context, key: str) -> str:
        results = [
            await run_with_retry(ctx, "sync", part, "a"),
            await run_with_retry(ctx, "async", part_async, "a"),
            await run_with_retry(ctx, "lambda of a coroutine", lambda: part_async("a"), returns=Part),
            await run_with_retry(ctx, "partial", functools.partial(part_async, "a")),
            await run_with_retry(ctx, "callable object", maker, "a"),
            await run_with_retry(ctx, "method", maker.method, "a"),
            await run_with_retry(ctx, "list of models", parts, 2),
            await run_with_retry(ctx, "none", nothing),
            await run_with_retry(ctx, "untyped", lambda: {"plain": [1, None]}),
        ]
        await ctx.sleep(timedelta(milliseconds=1))
        seen.append(results)  # after a replay, from the journal
        return "done"

    assert await result_of(restate, work) == "done"
    assert seen == [[*[Part(name="a")] * 6, parts(2), None, {"plain": [1, None]}]]


async def test_sync_action_does_not_block_loop(restate):
    threads: list[threading.Thread] = []

    async def work(ctx: sdk.Context, key: str) -> str:
        loops = threading.current_thread()
        await run_with_retry(ctx, "sync", lambda: threads.append(threading.current_thread()))
        threads.append(loops)
        return "done"

    await result_of(restate, work)
    assert threads[0] is not threads[-1]


async def test_unreadable_result_fails_run_permanently(restate, did):
    def action() -> Part:
        did.add("attempt")
        return "no part"  # type: ignore[return-value] # the mistake under test

    async def work(ctx: sdk.Context, key: str) -> str:
        return (await run_with_retry(ctx, QUICK, action)).name

    error = await failure_of(restate, work)
    assert did.count("attempt") == 1
    assert "cannot write a value of class str as Part" in error.message
    assert error.metadata["code"] == "unwritable"


async def test_non_text_metadata_ends_run(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        refusal = Refused("no seats left", metadata={"left": 0})  # type: ignore[dict-item] # the mistake under test
        return await run_with_retry(ctx, QUICK, failing(did, 99, refusal))

    error = await failure_of(restate, work)
    assert (error.message, error.metadata["left"]) == ("no seats left", "0")


async def test_started_runs_are_concurrent(restate):
    both = threading.Barrier(2)

    def meet() -> int:
        return both.wait(timeout=20)

    async def work(ctx: sdk.Context, key: str) -> str:
        one, two = run_async(ctx, "one", meet), run_async(ctx, "two", meet)
        await sdk.gather(one.future, two.future)
        return str(sorted([await one, await two]))

    assert await result_of(restate, work) == "[0, 1]"


async def test_await_run_with_other_futures(restate):
    async def work(ctx: sdk.Context, key: str) -> str:
        run = run_async(ctx, "work", lambda: "done", returns=str)
        first, _ = await sdk.select(run=run.future, late=ctx.sleep(timedelta(hours=1)))
        return f"{first} {await run}"

    assert await result_of(restate, work) == "run done"

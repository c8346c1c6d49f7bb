"""Concurrent operations: results in the order of the input, deterministic replays.

`tests.integration.concurrent_jobs` explains how each test checks determinism.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    IngressClient,
    ServiceClient,
    fan_out,
    fan_out_fail,
    gather,
    get_internal_signal,
    handler,
    race,
    run_async,
    wait_for_external_signal,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, TerminalError, error_code
from tests.integration.concurrent_jobs import (
    ONE_ATTEMPT,
    Case,
    Job,
    after,
    case,
    cases,
    done,
    lasting,
    ms,
    square,
    workers,
)
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("all")


async def test_results_keep_order_of_input(restate, did):
    # Results are values, and the index is that of the input.
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, after).call_async
        numbers = [3, 1, 2]

        def jobs(*failing: int) -> list[Any]:
            return [
                call(Job(key=key, number=-number if number in failing else number, after=ms(40 * number)))
                for number in numbers
            ]

        gathered = await gather(ctx, *jobs())
        every = await fan_out(ctx, jobs(2))
        failing = await fan_out_fail(ctx, jobs())
        won = await race(ctx, *jobs())
        try:
            every.values()
        except TerminalError as error:
            told = error.message
        nothing = await fan_out(ctx, [])
        return [
            gathered, failing, every.results, every.failed, every.success, told,
            {index: error_code(error) for index, error in every.errors.items()},
            won.winner, won.index, nothing.success, nothing.values(), await gather(ctx), await fan_out_fail(ctx, []),
        ]  # fmt: skip

    assert await done(restate, did, work) == [
        "(3, 1, 2)", "[3, 1, 2]", "(3, 1, None)", "1", "False", "fanout operation 2 failed: no -2",
        "{2: 'negative'}", "1", "1", "True", "[]", "()", "[]",
    ]  # fmt: skip


async def test_await_calls_runs_timers_and_signals(restate, did):
    flow = sdk.Workflow("Mixed")

    @handler(flow, "main", invocation_retry_policy=ONE_ATTEMPT)
    async def run(ctx: sdk.WorkflowContext) -> list[str]:
        asked = wait_for_external_signal(ctx, int)
        did.add(f"{ctx.key()}/{asked.id}")
        together = await gather(
            ctx,
            ServiceClient(ctx, square).call_async(Job(key="", number=3)),
            run_async(ctx, "run", lambda: "ran", returns=str),
            ctx.sleep(ms(5)),
            asked,
            get_internal_signal(ctx, "word", str),
        )
        late = await race(ctx, get_internal_signal(ctx, "never", str), ctx.sleep(ms(5)))
        early = await race(ctx, get_internal_signal(ctx, "word", str), ctx.sleep(timedelta(hours=1)))
        return [str(item) for item in (*together, late, early)]

    @handler(flow, "shared")
    async def say(ctx: sdk.WorkflowSharedContext, word: str) -> None:
        await get_internal_signal(ctx, "word", str).resolve(word)

    env = await restate.serve(flow, *workers(did))
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        await ingress.submit(run, key=key)

        async def asked() -> str | None:
            return next(iter(did.of(key)), None)

        id_ = await eventually(asked, what="awakeable")
        await ingress.call(say, "please", key=key)
        await ingress.resolve_awakeable(id_, 5)
        assert await ingress.attach(run, key=key) == [
            "9", "ran", "None", "5", "please",
            "RaceResult(winner=None, index=1)", "RaceResult(winner='please', index=0)",
        ]  # fmt: skip


async def test_cancel_losers_only_on_request(restate, did):
    async def race_and(ctx: sdk.Context, key: str, *, cancel: bool) -> list[object]:
        loser = ServiceClient(ctx, lasting).call_async(Job(key=f"{key}-race", number=1))
        await loser.invocation_id()
        won = await race(ctx, loser, ctx.sleep(ms(1)), run_async(ctx, "run", time.sleep, 0.2), cancel_losers=cancel)
        return [won.index, await loser] if cancel else [won.index, await loser.invocation_id()]

    async def cancelling(ctx: sdk.Context, key: str) -> list[object]:
        return await race_and(ctx, key, cancel=True)

    async def leaving(ctx: sdk.Context, key: str) -> list[object]:
        return await race_and(ctx, key, cancel=False)

    async def failing(ctx: sdk.Context, key: str) -> list[object]:
        loser = ServiceClient(ctx, lasting).call_async(Job(key=f"{key}-fan", number=1))
        try:
            await fan_out_fail(
                ctx, [loser, ServiceClient(ctx, after).call_async(Job(key=key, number=-1))], cancel_losers=True
            )
        except TerminalError as error:
            told = error.message
        try:
            await loser
        except TerminalError as error:
            return [told, type(error).__name__, error.message]
        return ["the loser was not cancelled"]

    env = await restate.serve(*cases(did, cancelling=cancelling, leaving=leaving, failing=failing))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        with pytest.raises(IngressError) as cancelled:
            await ingress.call(case, Case(key=str(uuid4()), name="cancelling"))
        assert (cancelled.value.status_code, cancelled.value.message) == (409, "cancelled")
        assert await ingress.call(case, Case(key=str(uuid4()), name="failing")) == [
            "fanout operation 1 failed: no -1", "TerminalError", "cancelled",
        ]  # fmt: skip
        index, loser = await ingress.call(case, Case(key=str(uuid4()), name="leaving"))
        assert index == "1"
        rows = await admin.query(f"select status from sys_invocation where id = {sql_text(loser)}")
        assert [row["status"] for row in rows] != ["completed"]

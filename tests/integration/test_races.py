"""Races of signals with timeouts."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import (
    IngressClient,
    get_internal_signal,
    handler,
    race_awakeable_with_timeout,
    race_promise_with_timeout,
    wait_for_external_signal,
)
from perdure.errors import IngressError
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("all")


class Wait(BaseModel):
    key: str
    timeout: timedelta


class Result(BaseModel):
    value: int | None
    timed_out: bool
    won: bool


def racing(did: Recording) -> tuple[list[Any], list[Any]]:
    flow, service = sdk.Workflow("Races"), sdk.Service("AwakeableRaces")

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext, timeout: timedelta) -> Result:
        did.add(f"run {ctx.key()}/")
        result = await race_promise_with_timeout(ctx, "number", timeout, int)
        await ctx.sleep(timedelta(milliseconds=1))  # a replay must have the same winner
        return Result(value=result.value, timed_out=result.timed_out, won=result.promise_won)

    @handler(flow, "shared")
    async def give(ctx: sdk.WorkflowSharedContext, number: int) -> None:
        await get_internal_signal(ctx, "number", int).resolve(number)

    @handler(flow, "shared")
    async def refuse(ctx: sdk.WorkflowSharedContext) -> None:
        await get_internal_signal(ctx, "number", int).reject("no number", 410)

    @handler(service)
    async def wait(ctx: sdk.Context, request: Wait) -> Result:
        signal = wait_for_external_signal(ctx, int)
        did.add(f"waits {request.key}/{signal.id}")
        value, timed_out = await race_awakeable_with_timeout(ctx, signal, request.timeout, -1)
        await ctx.sleep(timedelta(milliseconds=1))
        return Result(value=value, timed_out=timed_out, won=not timed_out)

    return [flow, service], [run, give, refuse, wait]


LONG, SHORT = timedelta(hours=1), timedelta(milliseconds=50)


async def test_race_promise_with_timeout(restate, did):
    services, (run, give, refuse, _) = racing(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:
        won, lost, broken = (str(uuid4()) for _ in range(3))
        for key in (won, broken):
            await ingress.send(run, LONG, key=key)
        await ingress.call(give, 0, key=won)
        assert await ingress.attach(run, key=won) == Result(value=0, timed_out=False, won=True)

        start = time.monotonic()
        assert await ingress.call(run, SHORT, key=lost) == Result(value=None, timed_out=True, won=False)
        assert time.monotonic() - start >= SHORT.total_seconds() * 0.9
        await ingress.call(give, 5, key=lost)  # too late

        await ingress.call(refuse, key=broken)
        with pytest.raises(IngressError) as failed:
            await ingress.attach(run, key=broken)
        assert (failed.value.status_code, failed.value.message) == (410, "no number")


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(seconds=-5)], ids=["now", "past"])
async def test_past_deadline_returns_available_value(restate, did, timeout):
    # ``await Time(ctx).until(deadline)`` is negative once the deadline has passed.
    services, (run, give, _, wait) = racing(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:
        early, never = str(uuid4()), str(uuid4())
        assert (await ingress.call(run, timeout, key=never)).timed_out
        await ingress.call(give, 7, key=early)
        assert await ingress.call(run, timeout, key=early) == Result(value=7, timed_out=False, won=True)
        request = Wait(key=never, timeout=timeout)
        assert await ingress.call(wait, request) == Result(value=-1, timed_out=True, won=False)


async def test_race_awakeable_with_timeout(restate, did):
    services, (_, _, _, wait) = racing(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:

        async def waiting(key: str) -> str:
            await ingress.send(wait, Wait(key=key, timeout=LONG), idempotency_key=key)

            async def seen() -> str | None:
                entries = did.of(key)
                return entries[0].removeprefix("waits ") if entries else None

            return await eventually(seen, what="awakeable")

        won, lost, broken = (str(uuid4()) for _ in range(3))
        await ingress.resolve_awakeable(await waiting(won), 0)
        result = await ingress.call(wait, Wait(key=won, timeout=LONG), idempotency_key=won)
        assert result == Result(value=0, timed_out=False, won=True)

        result = await ingress.call(wait, Wait(key=lost, timeout=SHORT))
        assert result == Result(value=-1, timed_out=True, won=False)

        await ingress.reject_awakeable(await waiting(broken), "no number")
        with pytest.raises(IngressError) as failed:
            await ingress.call(wait, Wait(key=broken, timeout=LONG), idempotency_key=broken)
        assert (failed.value.status_code, failed.value.message) == (500, "no number")

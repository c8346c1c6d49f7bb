"""Cancel during a run: the action ends first and is not repeated."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    IngressClient,
    RunConfig,
    fan_out,
    fan_out_fail,
    gather,
    map_concurrent,
    race,
    run_async,
    run_with_retry,
)
from perdure._runtime import late_cancel, user_code
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import Cancelled, IngressError, TerminalError
from perdure.runs import RunFuture
from tests.integration.run_cases import QUICK, failing, failure_of, go, serving
from tests.support import PATIENCE, eventually

pytestmark = pytest.mark.restate_modes("all")


async def test_cancel_waits_for_action_of_run(restate, did):
    opened = threading.Event()

    def action() -> str:
        did.add("start")
        assert opened.wait(20), "the test never opened the gate"
        did.add("end")
        return "done"

    async def work(ctx: sdk.Context, key: str) -> str:
        try:
            return await run_with_retry(ctx, RunConfig("charge", max_retries=0), action)
        except Cancelled as error:
            did.add(f"cancelled: {error.message}")
            raise

    env = await restate.serve(serving(work))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        invocation_id = await ingress.send(go, str(uuid4()))

        async def started() -> bool:
            return did.count("start") == 1

        await eventually(started, what="start of the action")
        await admin.control_invocation(invocation_id, "cancel")

        async def gave_up() -> bool:
            return len(did.all()) > 1

        with pytest.raises(AssertionError):  # must not end while the action is running
            await eventually(gave_up, what="end of a handler that left its action alone", within=0.5)
        opened.set()

        async def failure() -> str | None:
            rows = await admin.query(
                f"select completion_failure from sys_invocation where id = {sql_text(invocation_id)}"
            )
            return rows[0].get("completion_failure") if rows else None

        assert "cancelled during run 'charge'" in await eventually(failure, what="end of the invocation")
    assert did.all()[:2] == ["start", "end"]
    assert set(did.all()[2:]) == {"cancelled: cancelled during run 'charge'"}
    assert did.count("start") == 1


WAITS: dict[str, Callable[[sdk.Context, list[RunFuture[None]]], Awaitable[object]]] = {
    "gather": lambda ctx, runs: gather(ctx, *runs),
    "fan_out": fan_out,
    "fan_out_fail": fan_out_fail,
    "race": lambda ctx, runs: race(ctx, *runs),
    "map_concurrent": lambda ctx, runs: map_concurrent(ctx, runs, lambda run, _: run),
    "await": lambda ctx, runs: runs[0],
}


async def test_cancel_ends_actions_of_every_wait(restate, did, monkeypatch):
    monkeypatch.setattr(user_code, "CANCEL_GRACE", 0.5)
    monkeypatch.setattr(user_code, "CLEANUP_GRACE", PATIENCE)
    monkeypatch.setattr(late_cancel, "INTERVAL", 0.2)

    async def hang(entry: str) -> None:
        did.add(f"{entry}/start")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2 if entry.endswith("slow") else 0)  # its clean-up
            did.add(f"{entry}/stop")

    async def work(ctx: sdk.Context, key: str) -> str:
        name = key.partition("-")[0]
        entries = ["quick", "slow"][: 1 if name == "await" else 2]
        runs = [run_async(ctx, RunConfig(each, max_retries=0), hang, f"{key}/{each}") for each in entries]
        try:
            await WAITS[name](ctx, runs)
        except Cancelled:
            did.add(f"{key}/cancelled")
            raise
        return "not cancelled"

    env = await restate.serve(serving(work))

    async def play(ingress: IngressClient, name: str) -> None:
        key = f"{name}-{uuid4()}"
        invocation_id = await ingress.send(go, key)
        expected = 1 if name == "await" else 2
        await eventually(lambda: len(did.of(key)) == expected, what=f"start of the actions of {name}")
        await ingress.cancel(invocation_id)
        with pytest.raises(IngressError, match=f"cancelled during {'run' if name == 'await' else name}"):
            await ingress.attach(go, invocation_id=invocation_id)
        starts, happened = did.of(key)[:expected], did.of(key)[expected:]
        assert set(happened[:expected]) == {start.replace("start", "stop") for start in starts}
        assert set(happened[expected:]) == {"cancelled"}

    async with IngressClient(env.ingress, admin_url=env.admin) as ingress:
        await asyncio.gather(*(play(ingress, name) for name in WAITS))


@pytest.mark.restate_modes("http2")
async def test_crash_while_settling_repeats_no_action(restate, did):
    opened = threading.Event()

    def action() -> str:
        did.add("start")
        assert opened.wait(30), "the test never opened the gate"
        return "done"

    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, RunConfig("charge", max_retries=0), action)

    # The engine aborts the settling attempt, as a crash would, and starts another one.
    second = timedelta(seconds=1)
    env = await restate.serve(serving(work, inactivity_timeout=second, abort_timeout=second))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.send(go, key, idempotency_key=key)

        async def started() -> bool:
            return did.count("start") == 1

        await eventually(started, what="start of the action")
        await admin.control_invocation(invocation_id, "cancel")
        try:
            with pytest.raises(IngressError) as ended:
                await ingress.call(go, key, idempotency_key=key)
        finally:
            opened.set()
    assert (ended.value.status_code, ended.value.code) == (409, "cancelled")
    assert did.count("start") == 1


async def test_application_409_is_no_cancel(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        try:
            return await run_with_retry(ctx, QUICK, failing(did, 99, TerminalError("cancelled", 409)))
        except Cancelled:
            did.add("taken for a cancel")
            raise

    error = await failure_of(restate, work)
    assert (error.status_code, error.message) == (409, "cancelled")
    assert did.all() == ["attempt"]

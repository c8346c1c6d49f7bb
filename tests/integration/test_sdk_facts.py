"""Facts about the engine and the SDK on which the code relies. Detects changes by an upgrade."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from restate.exceptions import TerminalError

from perdure import IngressClient
from perdure._runtime.invocation_ids import pending_id, signal_id
from perdure.engine.admin import AdminClient
from perdure.errors import EngineError, IngressError
from tests.integration.raw_sdk import facts, failure_of, go, last_failure
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("all")

TICK = timedelta(milliseconds=1)


TWO_ATTEMPTS = sdk.InvocationRetryPolicy(
    initial_interval=timedelta(milliseconds=1), max_attempts=2, on_max_attempts="kill"
)


class Gate:
    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        self._event.set()

    def passed(self) -> str:
        assert self._event.wait(20), "the test never opened the gate"
        return "passed"


async def cancelled_during(env: Any, did: Recording, gate: Gate) -> str:
    """Cancel the invocation while its handler waits, open the gate, and return the response."""
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.send(go, key, idempotency_key=key)

        async def waits() -> bool:
            return did.count("waits") > 0

        await eventually(waits, what="wait")
        await admin.control_invocation(invocation_id, "cancel")
        gate.open()
        return await ingress.call(go, key, idempotency_key=key)


async def test_repeat_wait_completed_after_cancel(restate, did):
    gate = Gate()

    def action() -> str:
        did.add("waits")
        return gate.passed()

    async def work(ctx: sdk.Context, key: str) -> str:
        future = ctx.run_typed("gate", action)
        cancels = []
        while True:
            try:
                await sdk.wait_completed(future)
            except TerminalError as error:
                cancels.append(f"{type(error).__name__} {error.status_code} {error.message}")
                continue
            return f"{cancels} {await future}"

    env = await restate.serve(facts(work))
    assert await cancelled_during(env, did, gate) == "['TerminalError 409 cancelled'] passed"


async def test_cancelled_await_never_returns_result(restate, did):
    gate = Gate()

    def action() -> str:
        did.add("waits")
        return gate.passed()

    async def work(ctx: sdk.Context, key: str) -> str:
        future, seen = ctx.run_typed("gate", action), []
        for _ in range(2):
            try:
                seen.append(await future)
            except TerminalError as error:
                seen.append(f"{type(error).__name__} {error.status_code} {error.message}")
        return ", ".join(seen)

    env = await restate.serve(facts(work))
    assert await cancelled_during(env, did, gate) == "TerminalError 409 cancelled, TerminalError 409 cancelled"


async def test_wait_completed_does_not_raise_future_error(restate):
    def action() -> str:
        raise TerminalError("cancelled", 409)  # an application's error with the same text

    async def work(ctx: sdk.Context, key: str) -> str:
        future = ctx.run_typed("refuse", action)
        await sdk.wait_completed(future)
        await sdk.wait_completed(future)
        try:
            return await future
        except TerminalError as error:
            return f"then {error.status_code} {error.message}"

    env = await restate.serve(facts(work))
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(go, "x") == "then 409 cancelled"


async def test_sdk_reports_exhausted_run_by_repr(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        def action() -> str:
            did.add("attempt")
            raise OSError("gone")

        options: sdk.RunOptions[str] = sdk.RunOptions(
            max_attempts=2, initial_retry_interval=TICK, max_retry_interval=TICK
        )
        try:
            return await ctx.run_typed("charge", action, options)
        except TerminalError as error:
            return f"{error.status_code} {error.message} {error.metadata or {}}"

    env = await restate.serve(facts(work))
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(go, "x") == "500 OSError('gone') {}"
    assert did.count("attempt") == 2


async def test_error_from_terminal_error_is_terminal(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        did.add("attempt")
        raise ValueError("wrapped") from TerminalError("teapot", 418, {"code": "teapot"})

    error = await failure_of(await restate.serve(facts(work)))
    assert (error.status_code, error.message, error.metadata) == (418, "teapot", {"code": "teapot"})
    assert did.count("attempt") == 1


async def test_error_while_handling_terminal_is_retried(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        did.add("attempt")
        error = ValueError("not linked")
        error.__context__ = TerminalError("teapot", 418)
        raise error

    env = await restate.serve(facts(work, invocation_retry_policy=TWO_ATTEMPTS))
    async with httpx.AsyncClient() as http:
        response = await http.post(f"{env.ingress}/Facts/go", json="x")
    assert response.status_code == 500
    assert response.json()["message"] == "ValueError('not linked')"
    assert "Traceback" in response.json()["stacktrace"], "for operators, so IngressClient leaves it out"
    assert response.headers["x-restate-error-source"] == "invocation"
    assert did.count("attempt") == 2


async def test_raising_input_serde_is_a_500(restate):
    service = sdk.Service("Facts")

    @service.handler("go")
    async def handler(ctx: sdk.Context, number: int) -> int:
        return number

    env = await restate.serve(service)
    async with httpx.AsyncClient() as http:
        headers = {"content-type": "application/json"}
        response = await http.post(f"{env.ingress}/Facts/go", content=b"{", headers=headers)
    assert response.status_code == 500
    assert response.json()["message"].startswith("Unable to parse an input argument")


async def test_engine_retries_write_from_shared_handler(restate):
    thing = sdk.VirtualObject("Facts")

    @thing.handler("go", kind="shared")
    async def handler(ctx: sdk.ObjectSharedContext, key: str) -> str:
        cast("sdk.ObjectContext", ctx).set("n", 1)
        await cast("sdk.ObjectContext", ctx).sleep(TICK)
        return "done"

    env = await restate.serve(thing)
    async with IngressClient(env.ingress) as ingress:
        invocation_id = await ingress.send(go, "x", key=str(uuid4()))
    assert "this handler type cannot write state" in await last_failure(env, invocation_id)


@pytest.mark.restate_modes("always_suspending")
async def test_context_inside_run_breaks_replay(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        async def action() -> str:
            ctx.generic_send("Facts", "go", b'"again"')
            did.add("worked")
            return "x"

        if key == "again":
            return "enough"
        await ctx.run_typed("outer", action)
        await ctx.sleep(TICK)
        return "done"

    env = await restate.serve(facts(work))
    async with IngressClient(env.ingress) as ingress:
        invocation_id = await ingress.send(go, "x")
    assert "570 Journal mismatch" in await last_failure(env, invocation_id)
    assert did.all() == ["worked"]


@pytest.mark.restate_modes("http2")
async def test_sdk_rejects_negative_durations(restate):
    past = timedelta(seconds=-1)

    async def work(ctx: sdk.Context, key: str) -> str:
        failed = []
        for attempt in (lambda: ctx.sleep(past), lambda: ctx.generic_send("Facts", "go", b'"x"', send_delay=past)):
            try:
                attempt()
            except OverflowError:
                failed.append("OverflowError")
        return " ".join(failed)

    env = await restate.serve(facts(work))
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(go, "x") == "OverflowError OverflowError"


@pytest.mark.restate_modes("http2")
@pytest.mark.parametrize(
    ("service", "name", "taken"),
    [
        ("Facts.v1-x_", "go_1", True),
        ("_x", "_r", True),
        ("1x", "go", False),
        ("__x", "go", False),
        ("-x", "go", False),
        (".x", "go", False),
        ("Facts", "1r", False),
        ("Facts", "go-on", False),
        ("Facts", "__r", False),
        ("restatex", "go", False),
        ("Restate", "go", False),
        ("openapi", "go", False),
    ],
)
async def test_engine_accepts_names(restate, service, name, taken):
    definition = sdk.Service(service)

    async def handler(ctx: sdk.Context) -> None: ...

    definition.handler(name)(handler)
    try:
        await restate.serve(definition)
    except EngineError:
        served = False
    else:
        served = True
    assert served is taken


@pytest.mark.restate_modes("http2")
async def test_idempotency_key_must_be_ascii(restate):
    async def work(ctx: sdk.Context, key: str) -> str:
        return key

    env = await restate.serve(facts(work))
    async with httpx.AsyncClient() as http:
        headers = [(b"idempotency-key", "zoë".encode()), (b"content-type", b"application/json")]
        response = await http.post(f"{env.ingress}/Facts/go", content=b'"x"', headers=headers)
    assert response.status_code == 400
    assert "idempotency-key" in response.json()["message"]


async def completed_from_outside(env: Any, did: Recording, forged_id: Callable[[str], str]) -> str:
    """Forge the completion of a pending operation and return the response to the invocation's caller."""
    async with IngressClient(env.ingress) as ingress, httpx.AsyncClient(base_url=env.ingress) as http:
        key = str(uuid4())
        invocation = await ingress.send(go, key, idempotency_key=key)

        async def waits() -> bool:
            return did.count("waits") > 0

        await eventually(waits, what="wait")
        path = f"/restate/awakeables/{forged_id(invocation)}/resolve"
        response = await http.post(path, content=b'"forged"', headers={"content-type": "application/json"})
        assert response.status_code == 202
        return await ingress.call(go, key, idempotency_key=key)


async def test_ingress_accepts_results_of_pending_calls(restate, did):
    """The reason for random IDs of outcomes (`perdure._wake_ups`) and for `check_signal_id`."""
    gate = Gate()

    async def work(ctx: sdk.Context, key: str) -> str:
        return (await ctx.generic_call("Slow", "wait", b"")).decode()

    slow = sdk.Service("Slow")

    @slow.handler("wait")
    async def wait(ctx: sdk.Context) -> str:
        did.add("waits")
        return await asyncio.to_thread(gate.passed)

    env = await restate.serve(facts(work), slow)
    try:
        assert await completed_from_outside(env, did, lambda invocation: pending_id(invocation, 2)) == '"forged"'
    finally:
        gate.open()


async def test_ingress_cancels_by_signal_one(restate, did):
    """Callers of the ingress can cancel an invocation, see SECURITY.md."""

    async def work(ctx: sdk.Context, key: str) -> str:
        did.add("waits")
        await ctx.awakeable()[1]
        return "not cancelled"

    env = await restate.serve(facts(work))
    with pytest.raises(IngressError, match="cancelled"):
        await completed_from_outside(env, did, lambda invocation: signal_id(invocation, 1))

"""Facts about the engine and the SDK that the code relies on; an upgrade that changes one is noticed here.

Each test says which part relies on it. The facts come from running the engine, not from documentation.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from restate.exceptions import TerminalError

from perdure import AdminClient, IngressClient, Target, _sdk
from perdure.admin import sql_text
from perdure.errors import EngineError, IngressError
from perdure.testing.served import Mode
from tests.support import Recording, eventually

go = Target("Facts", "go", str, str)
TICK = timedelta(milliseconds=1)
TWO_ATTEMPTS = sdk.InvocationRetryPolicy(
    initial_interval=timedelta(milliseconds=1), max_attempts=2, on_max_attempts="kill"
)


def facts(work: Callable[[sdk.Context, str], Awaitable[str]], **options: Any) -> sdk.Service:
    """Return a service of the raw SDK whose handler ``go`` does the work."""
    service = sdk.Service("Facts")

    async def handler(ctx: sdk.Context, key: str) -> str:
        return await work(ctx, key)

    service.handler("go", **options)(handler)
    return service


async def failure_of(env: Any) -> IngressError:
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError) as failed:
            await ingress.call(go, str(uuid4()))
    return failed.value


async def last_failure(env: Any, invocation_id: str) -> str:
    """Wait until the engine has something to say about why an attempt failed."""
    async with AdminClient(env.admin) as admin:

        async def failed() -> str | None:
            rows = await admin.query(f"select last_failure from sys_invocation where id = {sql_text(invocation_id)}")
            return rows[0].get("last_failure") if rows else None

        return await eventually(failed, what="failed attempt")


# --- waiting and cancelling: perdure.waiting, perdure.runs ------------------------------------------------------------


class Gate:
    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        self._event.set()

    def passed(self) -> str:
        assert self._event.wait(20), "the test never opened the gate"
        return "passed"


async def cancelled_during(env: Any, did: Recording, gate: Gate) -> str:
    """Cancel the invocation once its handler says that it waits; open the gate, and return its response."""
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.send(go, key, idempotency_key=key)

        async def waits() -> bool:
            return did.count("waits") > 0

        await eventually(waits, what="wait")
        await admin.act(invocation_id, "cancel")
        gate.open()
        return await ingress.call(go, key, idempotency_key=key)


async def test_wait_completed_raises_for_our_own_cancel_and_can_be_repeated_until_the_future_is_done(restate, did):
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


async def test_a_plain_await_that_a_cancel_has_interrupted_never_gives_its_result(restate, did):
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


async def test_wait_completed_does_not_raise_what_the_future_holds(restate):
    def action() -> str:
        raise TerminalError("cancelled", 409)  # an application's own, with the very same text

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


# --- errors: perdure.runs, perdure.errors, perdure.ingress ------------------------------------------------------------


async def test_an_exhausted_run_is_a_terminal_500_with_the_repr_of_the_last_exception_and_no_metadata(restate, did):
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


async def test_an_error_raised_from_a_terminal_one_is_terminal_and_keeps_its_status(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        did.add("attempt")
        raise ValueError("wrapped") from TerminalError("teapot", 418, {"code": "teapot"})

    error = await failure_of(await restate.serve(facts(work)))
    assert (error.status_code, error.message, error.metadata) == (418, "teapot", {"code": "teapot"})
    assert did.count("attempt") == 1


async def test_an_error_raised_while_handling_a_terminal_one_is_retried_and_shows_its_stack_trace(restate, did):
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


async def test_a_serde_that_raises_on_input_is_a_500_so_ours_never_does(restate):
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


# --- what the guards are there for ------------------------------------------------------------------------------------


async def test_a_write_to_state_from_a_shared_handler_is_retried_so_state_guards_against_it(restate):
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
async def test_the_context_inside_a_run_breaks_the_replay_so_runs_guard_against_it(restate, did):
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
async def test_negative_times_can_be_neither_slept_nor_sent_so_races_and_clients_round_them_up(restate):
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


# --- names and keys: perdure.targets, perdure.ingress -----------------------------------------------------------------


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
async def test_names_that_the_engine_takes(restate, service, name, taken):
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
async def test_an_idempotency_key_must_be_ascii(restate):
    async def work(ctx: sdk.Context, key: str) -> str:
        return key

    env = await restate.serve(facts(work))
    async with httpx.AsyncClient() as http:
        headers = [(b"idempotency-key", "zoë".encode()), (b"content-type", b"application/json")]
        response = await http.post(f"{env.ingress}/Facts/go", content=b'"x"', headers=headers)
    assert response.status_code == 400
    assert "idempotency-key" in response.json()["message"]


# --- private parts of the SDK: perdure._sdk ---------------------------------------------------------------------------


async def test_the_handler_behind_a_context_is_known(restate):
    service, thing, flow = sdk.Service("InfoService"), sdk.VirtualObject("InfoObject"), sdk.Workflow("InfoFlow")

    async def describe(ctx: Any) -> str:
        info = _sdk.handler_info(ctx)
        return f"{info} {info.kind} writes={info.writes_state} key={_sdk.has_key(ctx)}"

    @service.handler()
    async def plain(ctx: sdk.Context) -> str:
        return await describe(ctx)

    @thing.handler()
    async def exclusive(ctx: sdk.ObjectContext) -> str:
        return await describe(ctx)

    @thing.handler(kind="shared")
    async def shared(ctx: sdk.ObjectSharedContext) -> str:
        return await describe(ctx)

    @flow.main()
    async def run(ctx: sdk.WorkflowContext) -> str:
        return await describe(ctx)

    @flow.handler()
    async def look(ctx: sdk.WorkflowSharedContext) -> str:
        return await describe(ctx)

    env = await restate.serve(service, thing, flow)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        assert await ingress.call(plain) == "InfoService/plain service writes=False key=False"
        assert await ingress.call(exclusive, key=key) == "InfoObject/exclusive exclusive writes=True key=True"
        assert await ingress.call(shared, key=key) == "InfoObject/shared shared writes=False key=True"
        assert await ingress.call(run, key=key) == "InfoFlow/run workflow writes=True key=True"
        assert await ingress.call(look, key=key) == "InfoFlow/look shared writes=False key=True"


async def test_replaying_is_known(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        did.add(f"before {_sdk.is_replaying(ctx)}")
        await ctx.sleep(timedelta(milliseconds=20))
        did.add(f"after {_sdk.is_replaying(ctx)}")
        return "done"

    env = await restate.serve(facts(work))
    async with IngressClient(env.ingress) as ingress:
        await ingress.call(go, "x")
    if restate.mode is Mode.HTTP2:
        assert did.all() == ["before False", "after False"]
    else:
        assert did.all() == ["before False", "before True", "after False"]


@pytest.mark.restate_modes("http2")
async def test_the_wait_for_a_calls_invocation_id_can_be_begun_anew(restate):
    async def work(ctx: sdk.Context, key: str) -> str:
        if key == "callee":
            return "done"
        call = ctx.generic_call("Facts", "go", b'"callee"')
        waiting = call.invocation_id_future  # type: ignore[attr-defined] # the private part that _sdk uses
        waiting.task = asyncio.get_running_loop().create_future()
        waiting.task.set_exception(TerminalError("cancelled", 409))  # what a cancel of the caller leaves there
        try:
            await call.invocation_id()
        except TerminalError:
            _sdk.ask_again(call)
        return await call.invocation_id()

    env = await restate.serve(facts(work))
    async with IngressClient(env.ingress) as ingress:
        assert (await ingress.call(go, "caller")).startswith("inv_")


def test_functions_of_the_sdks_own_decorators_are_known():
    service = sdk.Service("Facts")

    @service.handler("renamed")
    async def handler(ctx: sdk.Context, number: int) -> str | None:
        return str(number)

    assert _sdk.sdk_handler_types(handler) == ("Facts", "renamed", int, str | None)
    assert _sdk.sdk_handler_types(asyncio.sleep) is None
    assert _sdk.sdk_handler_types(5) is None

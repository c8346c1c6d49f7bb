"""Errors across services: mapping, metadata, and cancels."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
import restate as sdk
from restate.exceptions import RetryableError

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    ObjectClient,
    Orchestration,
    RunConfig,
    SagaConfig,
    ServiceClient,
    State,
    Target,
    get_internal_signal,
    handler,
    reject_external_signal,
    run_with_retry,
    wait_for_external_signal,
)
from perdure.engine.admin import AdminClient
from perdure.error_mapping import ErrorMapping
from perdure.errors import Cancelled, Conflict, IngressError, Refused, TerminalError, error_code
from perdure.saga import hosting
from perdure.saga.messages import rollback_status
from tests.support import eventually

TICK = timedelta(milliseconds=1)
QUICK = RunConfig("work", max_retries=3, initial_delay=TICK, max_delay=TICK)

ask = Target("ErrorsBack", "ask", str, str)
dispatcher = Target("ErrorsFront", "dispatcher", str, str)


async def test_refusal_crosses_services_unchanged(restate):
    back, front = DataPlaneService("ErrorsBack"), sdk.Service("ErrorsFront")
    caught: list[tuple[Any, ...]] = []

    @back.handler("ask")
    async def _ask(ctx: DataPlaneContext, flight: str) -> str:
        def refuse() -> str:
            raise Refused("no seats left", 410, "seats_sold_out", {"flight": flight})

        return await ctx.run("reserve", refuse)

    @handler(front, name="dispatcher")
    async def _dispatcher(ctx: sdk.Context, flight: str) -> str:
        try:
            return await ServiceClient(ctx, ask).call(flight)
        except TerminalError as error:
            caught.append((error.status_code, error.message, error_code(error), (error.metadata or {})["flight"]))
            await ctx.sleep(TICK)  # the same after a replay
            raise

    env = await restate.serve(back, front)
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError) as refused:
            await ingress.call(dispatcher, "PD100")
    error = refused.value
    assert (error.status_code, error.message, error.source) == (410, "no seats left", "invocation")
    assert error.metadata == {"code": "seats_sold_out", "flight": "PD100"}
    assert set(caught) == {(410, "no seats left", "seats_sold_out", "PD100")}


async def test_mapping_decides_on_retries(restate):
    tried: Counter[str] = Counter()

    def busy(error: TimeoutError) -> Exception:
        return RetryableError("busy", retry_after=TICK)

    service = DataPlaneService(
        "ErrorsBack",
        run=QUICK,
        errors=ErrorMapping({OSError: Conflict, ConnectionError: None, TimeoutError: busy, LookupError: Refused}),
    )
    kinds: dict[str, Exception] = {
        "exists": FileExistsError("it is there"),
        "lost": ConnectionResetError("lost"),
        "busy": TimeoutError("busy"),
        "outside": KeyError("seat"),
    }

    @service.handler("ask", public=True)
    async def _ask(ctx: DataPlaneContext, kind: str) -> str:
        def work() -> str:
            tried[kind] += 1
            if kind != "outside" and (kind == "exists" or tried[kind] < 3):
                raise kinds[kind]
            return "done"

        # A run with its own settings still uses the service's mapping.
        done = await ctx.run("work", work, config=RunConfig(max_retries=3, initial_delay=TICK, max_delay=TICK))
        if kind == "outside":
            tried["handler"] += 1
            raise kinds[kind]
        return done

    env = await restate.serve(service)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(ask, "lost") == "done"
        assert await ingress.call(ask, "busy") == "done"
        with pytest.raises(IngressError, match="it is there") as exists:
            await ingress.call(ask, "exists")
        with pytest.raises(IngressError, match="seat") as outside:
            await ingress.call(ask, "outside")
    assert (exists.value.status_code, exists.value.code, exists.value.metadata["cause"]) == (
        409,
        "conflict",
        "FileExistsError",
    )
    assert (outside.value.code, outside.value.metadata["cause"]) == ("refused", "KeyError")
    assert tried == {"lost": 3, "busy": 3, "exists": 1, "outside": 1, "handler": 1}


WAITS = {
    "sleep": lambda ctx: ctx.sleep(timedelta(hours=1)),
    "call": lambda ctx: ServiceClient(ctx, Target("ErrorsWaiting", "for_ever", None, None)).call(),
    "sdk call": lambda ctx: ctx.generic_call("ErrorsWaiting", "for_ever", b""),
    "signal": lambda ctx: wait_for_external_signal(ctx, str).result(),
    "select": lambda ctx: sdk.select(one=ctx.sleep(timedelta(hours=1)), other=ctx.awakeable()[1]),
    "gather": lambda ctx: sdk.gather(ctx.sleep(timedelta(hours=1)), ctx.awakeable()[1]),
}


async def test_distinguish_cancel_from_application_409(restate, did):
    waiting = sdk.Service("ErrorsWaiting")

    @handler(waiting)
    async def for_ever(ctx: sdk.Context) -> None:
        did.add("deep")
        await ctx.sleep(timedelta(hours=1))

    @handler(waiting)
    async def refuse(ctx: sdk.Context) -> None:
        raise TerminalError("cancelled", 409)  # same status and text as the SDK's

    @handler(waiting)
    async def go(ctx: sdk.Context, what: str) -> str:
        if what == "refusal":
            try:
                await ServiceClient(ctx, Target("ErrorsWaiting", "refuse", None, None)).call()
            except Cancelled:
                return "taken for a cancel"
            except TerminalError as error:
                return f"{error.status_code} {error.message}"
        did.add(f"waits {what}")
        try:
            await WAITS[what](ctx)
        except Cancelled as error:
            return f"cancelled: {error_code(error)} {error.status_code}"
        return "not reached"

    target = Target("ErrorsWaiting", "go", str, str)
    env = await restate.serve(waiting)
    async with IngressClient(env.ingress, timeout=timedelta(seconds=30)) as ingress, AdminClient(env.admin) as admin:
        assert await ingress.call(target, "refusal") == "409 cancelled"
        for what in WAITS:
            key = str(uuid4())
            invocation_id = await ingress.send(target, what, idempotency_key=key)

            async def waits(what: str = what) -> bool:
                return did.count(f"waits {what}") > 0

            await eventually(waits, what=f"wait for {what}")
            await admin.control_invocation(invocation_id, "cancel")
            assert await ingress.call(target, what, idempotency_key=key) == "cancelled: cancelled 409", what


async def test_callee_cancel_is_not_own_cancel(restate, did):
    service = sdk.Service("ErrorsCallee")
    ids: list[str] = []

    @handler(service)
    async def callee(ctx: sdk.Context) -> None:
        ids.append(ctx.request().id)
        await ctx.sleep(timedelta(hours=1))

    @handler(service)
    async def go(ctx: sdk.Context) -> str:
        try:
            await ServiceClient(ctx, callee).call()
        except Cancelled:
            return "taken for my own"
        except TerminalError as error:
            return f"{error.status_code} {error_code(error)}"
        return "not reached"

    env = await restate.serve(service)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        await ingress.send(go, idempotency_key=key)

        async def called() -> bool:
            return bool(ids)

        await eventually(called, what="call")
        await admin.control_invocation(ids[0], "cancel")
        assert await ingress.call(go, idempotency_key=key) == "409 cancelled"


async def test_handler_cleans_up_after_cancel(restate, did):
    """A cancel is delivered once, so later operations work."""
    thing = sdk.VirtualObject("ErrorsCleaning")

    @handler(thing, "exclusive")
    async def go(ctx: sdk.ObjectContext) -> str:
        await State(ctx, "busy", bool).set(True)
        did.add("waits")
        try:
            await ctx.sleep(timedelta(hours=1))
        except Cancelled:
            await State(ctx, "busy", bool).clear()
            return await run_with_retry(ctx, QUICK, lambda: "cleaned up")
        return "not reached"

    @handler(thing, "shared")
    async def busy(ctx: sdk.ObjectSharedContext) -> bool | None:
        return await State(ctx, "busy", bool).get()

    env = await restate.serve(thing)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.send(go, key=key, idempotency_key=key)

        async def waits() -> bool:
            return did.count("waits") > 0

        await eventually(waits, what="wait")
        await admin.control_invocation(invocation_id, "cancel")
        assert await ingress.call(go, key=key, idempotency_key=key) == "cleaned up"
        assert await ingress.call(busy, key=key) is None


async def test_orchestration_maps_errors_of_steps(restate):
    tried: Counter[str] = Counter()
    orders = ControlPlaneService(
        "ErrorsOrders",
        saga=SagaConfig(max_attempts=1),
        errors=ErrorMapping({LookupError: Refused, FileExistsError: Conflict}),
    )

    @orders.compensation()
    async def undo(ctx: sdk.Context, order: str) -> None:
        tried["undo"] += 1
        raise FileExistsError("the lorry is still there")

    @orders.main()
    async def run(cp: Orchestration) -> None:
        async def load(order: str) -> None: ...

        async def send(order: str) -> None:
            tried["send"] += 1
            raise KeyError("no such road")

        await cp.step("load", load, cp.key, compensate=undo.bind(cp.key))
        await cp.step("send", send, cp.key)

    env = await restate.serve(orders, *hosting.definitions())
    key = str(uuid4())
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError, match="step 'send' failed: 'no such road'") as failed:
            await ingress.call(Target("ErrorsOrders", "run", None, None), key=key)
        rollback = await ingress.call(rollback_status, key=f"ErrorsOrders:{key}")
    assert (failed.value.code, failed.value.metadata["rollback"]) == ("refused", "needs_attention")
    assert {step.step: step.error for step in rollback.steps if step.error} == {"load": "the lorry is still there"}
    assert tried == {"send": 1, "undo": 1}


# --- odd texts --------------------------------------------------------------------------------------------------------


class Unreadable:
    def __repr__(self) -> str:
        raise KeyboardInterrupt

    __str__ = __repr__


class UnreadableError(Exception):
    __repr__ = __str__ = Unreadable.__repr__


ODD: dict[str, Any] = {
    "surrogate": "caf\udce9",
    "control": "a\x1b[2J\x00\r\nb",
    "long": "x" * 1_100_000,
    "empty": "",
    "space": " ",
    "emoji": "🚲",
    "none": None,
    "number": 10**30,
    "bytes": b"\xff",
    "unreadable": Unreadable(),
}
STATUS: list[Any] = [0, 99, 200, 600, 1000, 70_000, -1, True, None, "404"]
FAIL_TWICE = RunConfig("work", max_retries=1, initial_delay=TICK, max_delay=TICK)
odd_things, odd_flow = sdk.VirtualObject("OddThings"), ControlPlaneService("OddFlow", public=True)
odd_attempts: Counter[str] = Counter()


@handler(odd_things, "exclusive")
async def refused(ctx: sdk.ObjectContext, how: str) -> None:
    raise Refused(ODD[how], 404, "missing", {"file": ODD[how], ODD[how]: "file"})


@handler(odd_things, "exclusive")
async def terminal(ctx: sdk.ObjectContext, how: str) -> None:
    raise TerminalError(ODD[how], 404, {"file": ODD[how], ODD[how]: "file"})


@handler(odd_things, "exclusive")
async def status(ctx: sdk.ObjectContext, how: str) -> None:
    raise TerminalError("x", STATUS[list(ODD).index(how)])


@handler(odd_things, "exclusive")
async def terminal_in_run(ctx: sdk.ObjectContext, how: str) -> None:
    def work() -> None:
        raise TerminalError(ODD[how], STATUS[list(ODD).index(how)], {"file": ODD[how]})

    await run_with_retry(ctx, QUICK, work)


@handler(odd_things, "exclusive")
async def error_in_run(ctx: sdk.ObjectContext, how: str) -> None:
    def work() -> None:
        raise UnreadableError(ODD[how]) if how == "unreadable" else OSError(ODD[how])

    await run_with_retry(ctx, FAIL_TWICE, work)


@handler(odd_things, "exclusive", errors=ErrorMapping({LookupError: Conflict}))
async def mapped(ctx: sdk.ObjectContext, how: str) -> None:
    class Missing(LookupError):
        __str__ = Unreadable.__repr__ if how == "unreadable" else LookupError.__str__

    raise Missing(ODD[how])


@handler(odd_things, "exclusive", invocation_retry_policy=sdk.InvocationRetryPolicy(initial_interval=TICK))
async def retried(ctx: sdk.ObjectContext, how: str) -> str:
    odd_attempts[key := f"{ctx.key()}/{how}"] += 1
    if odd_attempts[key] < 3:
        raise UnreadableError(ODD[how]) if odd_attempts[key] == 1 else RetryableError(ODD[how], 500, TICK)
    return how


@handler(odd_things, "exclusive")
async def rejection(ctx: sdk.ObjectContext, how: str) -> None:
    signal = wait_for_external_signal(ctx, str)
    reject_external_signal(ctx, signal.id, ODD[how], STATUS[list(ODD).index(how)])
    await signal.result()


@handler(odd_things, "exclusive")
async def run_name(ctx: sdk.ObjectContext, how: str) -> str:
    return await run_with_retry(ctx, ODD[how], lambda: how, returns=str)


@handler(odd_things, "exclusive")
async def state_name(ctx: sdk.ObjectContext, how: str) -> str:
    for name in ("control", "empty", "space", "emoji"):
        await State(ctx, ODD[name], str).set(name)
    return str(await State(ctx, ODD[how], str).get())


@handler(odd_things, "shared")
async def header_value(ctx: sdk.ObjectSharedContext, how: str) -> str:
    return next((name for name in ODD if ODD[name] == ctx.request().headers.get("x-what")), "other")


@handler(odd_things, "exclusive")
async def header(ctx: sdk.ObjectContext, how: str) -> str:
    return await ObjectClient(ctx, header_value, ctx.key()).call(how, headers={"x-what": ODD[how]})


@handler(odd_things, "exclusive")
async def idempotency_key(ctx: sdk.ObjectContext, how: str) -> str:
    key = ctx.key() + ODD[how] if isinstance(ODD[how], str) else ODD[how]
    await ObjectClient(ctx, header_value, ctx.key()).call(how, idempotency_key=key)
    return how


async def _same(how: str) -> str:
    return how


@odd_flow.main
async def odd_steps(cp: Orchestration, how: str) -> str:
    """Do a step of this name, then fail with this text, so that the saga stores both."""
    place, _, how = how.partition("/")
    if place == "step":
        return await cp.step(ODD[how], _same, how)
    if place == "promise":
        signal = get_internal_signal(cp.ctx, ODD[how], str)
        await signal.resolve(how)
        return await signal.result()
    raise TerminalError(ODD[how], STATUS[list(ODD).index(how)], {"file": ODD[how]})


NAMED = (run_name, state_name, header, idempotency_key)
FAILING = (refused, terminal, status, terminal_in_run, error_in_run, mapped, rejection)


@pytest.mark.restate_modes("http2", "always_suspending")
async def test_odd_texts_fail_or_work_at_once(restate):
    env = await restate.serve(odd_things, odd_flow, *hosting.definitions())
    flows = Target("OddFlow", "run", str, str)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:

        async def outcome(target: Any, how: str) -> str | IngressError:
            try:
                return cast("str", await ingress.call(target, how, key=str(uuid4())))
            except IngressError as error:
                return error

        works = [(place, how) for place in (*NAMED, retried) for how in ODD]
        works += [(flows, f"{place}/{how}") for place in ("step", "promise") for how in ODD if how != "unreadable"]
        fails = [(place, how) for place in FAILING for how in ODD] + [(flows, f"error/{how}") for how in ODD]
        outcomes = await asyncio.gather(*(outcome(target, how) for target, how in works + fails))
        for (target, how), found in zip(works, outcomes, strict=False):
            name = how.rpartition("/")[2]
            if isinstance(found, IngressError):
                assert target is not retried, (how, found)
                assert (found.status_code, found.code) == (400, "invalid_input"), (target, how, found)
                assert name not in ("control", "space", "emoji"), (target, how, found)
            else:
                assert found == name, (target, how)
        for (target, how), found in zip(fails, outcomes[len(works) :], strict=True):
            assert isinstance(found, IngressError), (target, how)
            assert found.source == "invocation", (target, how, found)
            assert 400 <= found.status_code <= 599
            assert len(found.message) < 20_000
        rows = await admin.query("select target from sys_invocation where status != 'completed'")
        assert rows == []

"""Hooks on a real engine; replays, suspensions and further attempts call none."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    ObservabilityHooks,
    Orchestration,
    RunConfig,
    SagaConfig,
    ServiceClient,
    State,
    Target,
    clear_all,
    handler,
    run_async,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, Refused, TerminalError
from perdure.observability import events
from perdure.observability.hooks import add_hooks, remove_hooks
from perdure.saga import hosting
from perdure.testing import Mode
from tests.support import eventually

TICK = timedelta(milliseconds=1)
QUICK = RunConfig(max_retries=3, initial_delay=TICK, max_delay=TICK)
NAMES = [each.name for each in fields(ObservabilityHooks)]


class RecordedEvents:
    """Events that the hooks received, by hook."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[tuple[str, Any]] = []
        self.hooks = ObservabilityHooks(**{name: self._hook(name) for name in NAMES})

    def _hook(self, name: str) -> Any:
        def hook(event: Any) -> None:
            with self._lock:
                self._events.append((name, event))

        return hook

    def of(self, hook: str, key: str) -> list[Any]:
        """Return the events of a hook with a key."""
        with self._lock:
            return [event for name, event in self._events if name == hook and key in repr(event)]

    def counts(self, key: str) -> Counter[str]:
        with self._lock:
            return Counter(name for name, event in self._events if key in repr(event))


@pytest.fixture
def recorded() -> Iterator[RecordedEvents]:
    recorded = RecordedEvents()
    add_hooks(recorded.hooks)
    yield recorded
    remove_hooks(recorded.hooks)


class Order(BaseModel):
    fails: bool = False


class Part(BaseModel):
    order: str
    name: str
    fails: bool = False


build = Target("HookParts", "build", Part, str)
scrap = Target("HookParts", "scrap", Part, None)
run_order = Target("HookOrders", "run", Order, list[str])


def factory(attempts: Counter[str]) -> list[Any]:
    """Return services whose runs and compensations fail before they succeed."""
    parts = DataPlaneService("HookParts", run=QUICK)

    @parts.handler("build")
    async def _build(ctx: DataPlaneContext, part: Part) -> str:
        def do() -> str:
            attempts[part.order] += 1
            if part.fails:
                raise Refused(f"no material for {part.name} of {part.order}")
            if attempts[part.order] <= 2:
                raise OSError(f"the press of {part.order} is warming up")
            return f"{part.name}!"

        return await ctx.run("build", do)

    @parts.handler("scrap")
    async def _scrap(ctx: DataPlaneContext, part: Part) -> None:
        def do() -> None:
            attempts[f"scrap {part.order}"] += 1
            if attempts[f"scrap {part.order}"] == 1:
                raise Refused(f"the bin of {part.order} is full")

        await ctx.run("scrap", do)

    orders = ControlPlaneService("HookOrders", saga=SagaConfig(initial_delay=TICK, max_delay=TICK))

    @orders.compensation()
    async def scrap_part(ctx: sdk.Context, part: Part) -> None:
        await ServiceClient(ctx, scrap).call(part)

    @orders.main()
    async def make(cp: Orchestration, order: Order) -> list[str]:
        first = Part(order=cp.key, name="a")
        made = [await cp.step("a", build, first, compensate=scrap_part.bind(first))]
        await cp.ctx.sleep(TICK)
        made.append(await cp.step("b", build, Part(order=cp.key, name="b", fails=order.fails)))
        return made

    return [parts, orders, *hosting.definitions()]


async def test_successful_saga_calls_hooks_once(restate, recorded):
    env = await restate.serve(*factory(Counter()))
    key = uuid4().hex
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(run_order, Order(), key=key) == ["a!", "b!"]

    async def ended() -> bool:
        return bool(recorded.of("on_workflow_end", key))

    await eventually(ended, what="the end of the workflow")
    (start,) = recorded.of("on_workflow_start", key)
    (end,) = recorded.of("on_workflow_end", key)
    assert start.invocation == end.invocation
    assert (str(end.invocation.handler), end.invocation.key, end.error) == ("HookOrders/run", key, None)
    assert end.duration is not None
    assert end.duration > timedelta(0)
    assert recorded.counts(key) == {
        "on_invocation_start": 1,  # the workflow; other invocations do not have the key
        "on_invocation_end": 1,
        "on_workflow_start": 1,
        "on_workflow_end": 1,
        "on_saga_start": 1,
        "on_saga_step_added": 2,
        "on_error": 2,  # the retried attempts of a run
    }
    assert [step.step for step in recorded.of("on_saga_step_added", key)] == ["a", "b"]
    assert all((failed.terminal, failed.run) == (False, "build") for failed in recorded.of("on_error", key))


async def test_rolled_back_saga_calls_hooks_once(restate, recorded):
    env = await restate.serve(*factory(Counter()))
    key = uuid4().hex
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError, match="step 'b' failed: no material"):
            await ingress.call(run_order, Order(fails=True), key=key)

    (saga,) = recorded.of("on_saga_start", key)
    assert saga.saga == f"HookOrders:{key}"
    first, second = recorded.of("on_saga_step_added", key)
    assert (first.step, first.compensation) == ("a", "HookOrdersCompensations/scrap_part")
    assert (second.step, second.compensation) == ("b", None)

    # The first compensation fails with a terminal error and is retried: two invocations, one event each.
    starts, ends = recorded.of("on_compensation_start", key), recorded.of("on_compensation_end", key)
    assert [(each.saga, each.step) for each in starts] == [(saga.saga, "a")] * 2
    assert [each.invocation for each in starts] == [each.invocation for each in ends]
    assert starts[0].invocation.id != starts[1].invocation.id
    assert [None if each.error is None else each.error.message for each in ends] == [f"the bin of {key} is full", None]

    (end,) = recorded.of("on_workflow_end", key)
    assert isinstance(end.error, TerminalError)
    assert (end.error.metadata or {})["rollback"] == "rolled_back"
    failures = Counter((each.run, each.terminal) for each in recorded.of("on_error", key))
    assert failures == {
        ("build", False): 2,  # retried
        ("build", True): 1,  # of step b
        (None, True): 4,  # step b's handler and the workflow, scrap's handler and its caller, the compensation
        ("scrap", True): 1,
    }


def cart() -> tuple[sdk.VirtualObject, Target[int, int]]:
    thing = sdk.VirtualObject("HookCart")

    @handler(thing, "exclusive")
    async def fill(ctx: sdk.ObjectContext, count: int) -> int:
        number = State(ctx, "number", int, default=0)
        for _ in range(count):
            await number.set(await number.get() + 1)
            await ctx.sleep(TICK)
        await number.clear()
        await clear_all(ctx)
        await ctx.sleep(TICK)
        return count

    return thing, Target("HookCart", "fill", int, int)


async def test_state_hooks_ignore_replays(restate, recorded):
    thing, fill = cart()
    env = await restate.serve(thing)
    key = uuid4().hex
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(fill, 3, key=key) == 3
    assert recorded.counts(key) == {
        "on_invocation_start": 1,
        "on_invocation_end": 1,
        "on_state_get": 3,
        "on_state_set": 3,
        "on_state_clear": 2,
    }
    assert [(event.key, event.size) for event in recorded.of("on_state_set", key)] == [("number", 1)] * 3
    assert [event.key for event in recorded.of("on_state_clear", key)] == ["number", "*"]


async def test_invocation_with_several_attempts_is_one_event(restate, recorded):
    seen: list[Any] = []
    for event in (events.AttemptStarted, events.AttemptEnded):
        events.subscribe(event, seen.append)
    service = sdk.VirtualObject("HookAttempts")
    failures: Counter[str] = Counter()

    @handler(service, "exclusive")
    async def go(ctx: sdk.ObjectContext) -> str:
        failures[ctx.key()] += 1
        if failures[ctx.key()] == 1:  # before the first journal entry, so that the next attempt is not a replay
            raise OSError("gone")
        await ctx.sleep(TICK)
        return "done"

    env = await restate.serve(service)
    key = uuid4().hex
    try:
        async with IngressClient(env.ingress) as ingress:
            assert await ingress.call(Target("HookAttempts", "go", None, str), key=key) == "done"
    finally:
        for event in (events.AttemptStarted, events.AttemptEnded):
            events.unsubscribe(event, seen.append)
    assert recorded.counts(key) == {"on_invocation_start": 1, "on_invocation_end": 1, "on_error": 1}
    (failed,) = recorded.of("on_error", key)
    assert (failed.terminal, failed.run, repr(failed.error)) == (False, None, "OSError('gone')")

    own = [event for event in seen if event.invocation.key == key]
    outcomes = [event.outcome for event in own if isinstance(event, events.AttemptEnded)]
    replays = [event.replays for event in own if isinstance(event, events.AttemptStarted)]
    suspended = 0 if restate.mode is Mode.HTTP2 else 1
    assert outcomes == ["retried", *["interrupted"] * suspended, "succeeded"]
    assert replays == [False, False, *[True] * suspended]


@pytest.mark.restate_modes("http2")
async def test_reused_workflow_key_calls_hooks_again(restate, recorded):
    flow = sdk.Workflow("HookAgain")

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext) -> None:
        await ctx.sleep(TICK)

    env = await restate.serve(flow)
    key = uuid4().hex
    again = Target("HookAgain", "run", None, None)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        await ingress.call(again, key=key)
        (row,) = await admin.query(f"select id from sys_invocation_status where target_service_key = {sql_text(key)}")
        await admin.control_invocation(row["id"], "purge")  # as at the end of its retention; the ID is reused
        await ingress.call(again, key=key)
    assert recorded.counts(key) == dict.fromkeys(
        ("on_invocation_start", "on_workflow_start", "on_workflow_end", "on_invocation_end"), 2
    )


@pytest.mark.restate_modes("http2")
async def test_abandoned_run_is_interrupted(restate):
    ended: list[events.RunAttemptEnded] = []
    service = sdk.VirtualObject("HookLeft")
    never = asyncio.Event()

    @handler(service, "exclusive")
    async def go(ctx: sdk.ObjectContext) -> str | None:
        slow = run_async(ctx, "slow", never.wait)
        quick = run_async(ctx, "quick", asyncio.sleep, 0, returns=type(None))
        return (await sdk.select(slow=slow.future, quick=quick.future))[0]

    env = await restate.serve(service)
    key = uuid4().hex

    async def both() -> dict[str, bool] | None:
        interrupted = {event.run: event.interrupted for event in ended if event.invocation.key == key}
        return interrupted if len(interrupted) == 2 else None

    events.subscribe(events.RunAttemptEnded, ended.append)
    try:
        async with IngressClient(env.ingress) as ingress:
            assert await ingress.call(Target("HookLeft", "go", None, str), key=key) == "quick"
        assert await eventually(both, what="the end of both runs") == {"quick": False, "slow": True}
    finally:
        events.unsubscribe(events.RunAttemptEnded, ended.append)


@pytest.mark.restate_modes("http2")
async def test_invalid_request_and_response_call_hooks(restate, recorded):
    service = sdk.VirtualObject("HookMisfits")

    @handler(service, "exclusive")
    async def go(ctx: sdk.ObjectContext, number: int) -> int:
        return "not a number"  # type: ignore[return-value] # the error under test

    env = await restate.serve(service)
    key = uuid4().hex
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError) as refused:
            await ingress.call(Target("HookMisfits", "go", str, int), "x", key=key)
        with pytest.raises(IngressError) as unwritable:
            await ingress.call(Target("HookMisfits", "go", int, int), 1, key=key)
    assert refused.value.code == "invalid_input"
    assert unwritable.value.message.startswith("the response of HookMisfits/go: cannot write a value of class str")
    assert unwritable.value.metadata == {"code": "unwritable", "handler": "HookMisfits/go"}
    assert recorded.counts(key) == {"on_invocation_start": 2, "on_invocation_end": 2, "on_error": 2}
    assert all(event.error is not None for event in recorded.of("on_invocation_end", key))


@pytest.mark.restate_modes("http2")
async def test_failing_hook_affects_nothing_else(restate, recorded, caplog):
    def broken(event: object) -> None:
        raise TerminalError("out of order")

    hooks = ObservabilityHooks(**dict.fromkeys(NAMES, broken))
    more = RecordedEvents()
    add_hooks(hooks)
    add_hooks(more.hooks)
    thing, fill = cart()
    env = await restate.serve(thing)
    key = uuid4().hex
    try:
        async with IngressClient(env.ingress) as ingress:
            assert await ingress.call(fill, 1, key=key) == 1
    finally:
        remove_hooks(hooks)
        remove_hooks(more.hooks)
    assert recorded.counts(key) == more.counts(key)
    assert recorded.counts(key)["on_state_set"] == 1
    assert "hook failed; the invocation continues" in caplog.text
    assert "out of order" in caplog.text

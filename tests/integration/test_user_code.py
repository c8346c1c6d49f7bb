"""User code that ends oddly, hangs, or uses asyncio around durable operations: the invocation still ends."""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel, model_validator

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    RunConfig,
    SafeStep,
    SagaConfig,
    ServiceClient,
    Target,
    gather,
    map_concurrent,
    race,
    run_async,
    run_with_retry,
)
from perdure._runtime import late_cancel, user_code
from perdure.concurrency import RaceResult
from perdure.engine.admin import AdminClient
from perdure.error_mapping import ErrorMapping
from perdure.errors import Conflict, IngressError, Refused
from perdure.handlers import handler
from perdure.saga import hosting
from tests.support import PATIENCE, Recording, eventually

pytestmark = pytest.mark.restate_modes("all")

TWICE = RunConfig(max_retries=1, initial_delay=timedelta(milliseconds=5))
SOON: dict[str, Any] = {"initial_delay": timedelta(milliseconds=5), "max_delay": timedelta(milliseconds=5)}


class Odd(BaseException):
    pass


class Duplicate(Exception):
    pass


def exhaust_iterator() -> None:
    next(iter([]))


def cancel_future() -> None:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.cancel()
    future.result()


def parse_arguments() -> None:
    argparse.ArgumentParser(usage="").parse_args(["--unknown"])


def raising(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


WAYS: dict[str, Callable[[], None]] = {
    "StopIteration": exhaust_iterator,
    "StopAsyncIteration": raising(StopAsyncIteration),
    "cancelled future": cancel_future,
    "CancelledError": raising(asyncio.CancelledError),
    "GeneratorExit": raising(GeneratorExit),
    "SystemExit": raising(SystemExit),
    "argparse": parse_arguments,
    "KeyboardInterrupt": raising(KeyboardInterrupt),
    "BaseException": raising(Odd("odd")),
    "BaseExceptionGroup": raising(BaseExceptionGroup("two", [SystemExit(1), ValueError("x")])),
    "ExceptionGroup": raising(ExceptionGroup("two", [ExceptionGroup("one", [KeyError("k")]), ValueError("x")])),
}


async def await_cancelled_task() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


async def cancel_itself_and_return() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def time_out() -> None:
    async with asyncio.timeout(0.001):
        await asyncio.sleep(60)


ASYNC_WAYS: dict[str, Callable[[], Awaitable[None]]] = {
    "cancelled task": await_cancelled_task,
    "cancelled itself": cancel_itself,
    "cancelled at the end": cancel_itself_and_return,
    "timeout": time_out,
}
PLACES = ("run", "thread", "lambda", "sdk", "handler", "branch", "saga")


class Case(BaseModel):
    place: str
    way: str
    key: str


class Failing:
    """Services whose code fails in the way and at the place of the request."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        work = sdk.Service("OddWork")
        sagas = ControlPlaneService("OddSagas", saga=SagaConfig(max_attempts=1, **SOON))

        async def fail(case: Case) -> None:
            self.attempts[f"{case.place} {case.key}"] += 1
            if case.way in WAYS:
                WAYS[case.way]()
            await ASYNC_WAYS[case.way]()

        def fail_in_thread(case: Case) -> None:
            self.attempts[f"{case.place} {case.key}"] += 1
            WAYS[case.way]()

        async def fail_once(case: Case) -> str:
            if not self.attempts[f"{case.place} {case.key}"]:
                await fail(case)
            return "second attempt"

        @handler(work)
        async def misbehave(ctx: sdk.Context, case: Case) -> str:
            places: dict[str, Callable[[], Awaitable[Any]]] = {
                "run": lambda: run_with_retry(ctx, TWICE.named("odd"), fail, case),
                "thread": lambda: run_with_retry(ctx, TWICE.named("odd"), fail_in_thread, case),
                "lambda": lambda: run_with_retry(ctx, TWICE.named("odd"), lambda: fail(case), returns=None),
                "sdk": lambda: ctx.run_typed("odd", fail, sdk.RunOptions(max_attempts=2), case),
                "handler": lambda: fail_once(case),
                "branch": lambda: map_concurrent(ctx, [case], lambda item, _: fail_once(item)),
            }
            return str(await places[case.place]())

        @sagas.compensation
        async def release(ctx: sdk.Context, case: Case) -> None:
            await fail_once(case.model_copy(update={"place": "compensation"}))

        @sagas.main
        async def book(cp: Orchestration, case: Case) -> str:
            await cp.step("hold", echo, "12A", compensate=release.bind(case))
            await cp.step("odd", fail, case, config=TWICE)
            return "no failure"

        self.misbehave, self.book = misbehave, book
        self.services = [work, sagas, *hosting.definitions()]


async def echo(text: str) -> str:
    return text


async def outcome(call: Awaitable[Any]) -> str:
    """Return the response, or status, code and rollback of the error."""
    try:
        return str(await asyncio.wait_for(call, PATIENCE))
    except IngressError as error:
        return " ".join([str(error.status_code), error.code or "", error.metadata.get("rollback", "")]).strip()
    except TimeoutError:
        return "no response"


async def test_odd_ends_are_failed_attempts(restate):
    failing = Failing()
    env = await restate.serve(*failing.services)

    turns = asyncio.Semaphore(20)  # the time limit of a call must not include all other calls

    async def play(ingress: IngressClient, place: str, way: str) -> str:
        case = Case(place=place, way=way, key=str(uuid4()))
        if place != "saga":
            async with turns:
                response = await outcome(ingress.call(failing.misbehave, case))
            return f"{response}; {failing.attempts[f'{place} {case.key}']}"
        async with turns:
            response = await outcome(ingress.call(failing.book, case, key=case.key))
        return f"{response}; {failing.attempts[f'saga {case.key}']}, {failing.attempts[f'compensation {case.key}']}"

    cases = [(place, way) for place in PLACES for way in WAYS]
    cases += [(place, way) for place in PLACES if place != "thread" for way in ASYNC_WAYS]
    async with IngressClient(env.ingress) as ingress:
        outcomes = await asyncio.gather(*(play(ingress, *case) for case in cases))
    expected = {
        "sdk": "500; 2",
        "handler": "second attempt; 1",
        "branch": "['second attempt']; 1",
        "saga": "500 run_exhausted rolled_back; 2, 1",
    }
    unexpected = {
        case: outcome
        for case, outcome in zip(cases, outcomes, strict=True)
        if outcome != expected.get(case[0], "500 run_exhausted; 2")
    }
    assert not unexpected


class OddRequest(BaseModel):
    way: str

    @model_validator(mode="after")
    def fail(self) -> OddRequest:
        WAYS[self.way]()
        return self


async def test_odd_ends_of_validators_refuse_request(restate):
    service = sdk.Service("OddRequests")
    handled = Recording()

    @handler(service)
    async def work(ctx: sdk.Context, request: OddRequest) -> None:
        handled.add(request.way)

    env = await restate.serve(service)
    target = Target("OddRequests", "work", dict[str, str], None)
    async with IngressClient(env.ingress) as ingress:
        outcomes = await asyncio.gather(*(outcome(ingress.call(target, {"way": way})) for way in WAYS))
    assert dict(zip(WAYS, outcomes, strict=True)) == dict.fromkeys(WAYS, "400 invalid_input")
    assert handled.all() == []


async def test_default_policy_limits_aborted_attempts(restate):
    work = sdk.Service("AbortedWork")
    attempts: list[str] = []

    def abort(way: str) -> None:
        attempts.append(way)
        WAYS[way]()

    @handler(work)
    async def misbehave(ctx: sdk.Context, way: str) -> None:
        await run_with_retry(ctx, RunConfig("odd", initial_delay=SOON["initial_delay"]), abort, way)

    env = await restate.serve(work)
    async with IngressClient(env.ingress) as ingress:
        for way in ("SystemExit", "StopIteration"):
            with pytest.raises(IngressError, match="5 aborted attempts") as failure:
                await asyncio.wait_for(ingress.call(misbehave, way), PATIENCE)
            assert failure.value.code == "run_exhausted"
            assert attempts.count(way) == 5


class Grouped:
    """Services whose code raises exception groups."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        work = DataPlaneService("GroupedWork", public=True, errors=ErrorMapping({Duplicate: Conflict}))
        sagas = ControlPlaneService("GroupedSagas", saga=SagaConfig(max_attempts=1, **SOON))

        async def refuse() -> None:
            raise Refused("the card is declined", 402, "declined")

        async def repeat() -> None:
            raise Duplicate("charged already")

        async def stumble() -> None:
            raise ValueError("lost the connection")

        async def act(case: Case) -> None:
            self.attempts[case.key] += 1
            async with asyncio.TaskGroup() as outer:
                outer.create_task(stumble())
                async with asyncio.TaskGroup() as inner:
                    inner.create_task(repeat() if case.way == "mapped" else refuse())

        @work.handler()
        async def misbehave(ctx: DataPlaneContext, case: Case) -> None:
            await (ctx.run("act", act, case) if case.place == "run" else act(case))

        @sagas.compensation
        async def release(ctx: sdk.Context, case: Case) -> None:
            if case.place == "compensation":
                await act(case)

        @sagas.main
        async def book(cp: Orchestration, case: Case) -> None:
            await cp.step("hold", echo, "12A", compensate=release.bind(case))
            if case.place == "compensation":
                raise Refused("full", 402, "declined")
            await cp.step("act", act, case)

        self.misbehave, self.book = misbehave, book
        self.services = [work, sagas, *hosting.definitions()]


async def test_terminal_error_in_group_is_terminal(restate):
    grouped = Grouped()
    env = await restate.serve(*grouped.services)

    async def play(ingress: IngressClient, place: str, way: str) -> str:
        case = Case(place=place, way=way, key=str(uuid4()))
        if place in ("step", "compensation"):
            response = await outcome(ingress.call(grouped.book, case, key=case.key))
        else:
            response = await outcome(ingress.call(grouped.misbehave, case))
        return f"{response}; {grouped.attempts[case.key]}"

    expected = {
        ("run", "refused"): "402 declined; 1",
        ("handler", "refused"): "402 declined; 1",
        ("run", "mapped"): "409 conflict; 1",
        ("handler", "mapped"): "409 conflict; 1",
        ("step", "refused"): "402 declined rolled_back; 1",
        ("compensation", "refused"): "402 declined needs_attention; 1",
    }
    async with IngressClient(env.ingress) as ingress:
        outcomes = await asyncio.gather(*(play(ingress, *case) for case in expected))
    assert dict(zip(expected, outcomes, strict=True)) == expected


tools = sdk.Service("AsyncioTools")


@handler(tools)
async def slow(ctx: sdk.Context) -> str:
    await asyncio.sleep(1)
    return "slow"


@handler(tools)
async def use_asyncio(ctx: sdk.Context, tool: str) -> str:
    async def steps(name: str) -> str:
        return await run_with_retry(ctx, name, echo, name)

    async def sleep(text: str) -> str:
        await asyncio.sleep(PATIENCE)
        return text

    async def gather_futures() -> None:
        await asyncio.gather(run_async(ctx, "a", echo, "a"), run_async(ctx, "b", echo, "b"))

    async def hide_failure_of_call() -> None:
        await asyncio.gather(ServiceClient(ctx, slow).call(), return_exceptions=True)

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(steps("a"))

    async def leave_task() -> None:
        asyncio.create_task(steps("a"))  # noqa: RUF006 - the mistake

    async def wait_for_futures() -> None:
        futures: Any = [run_async(ctx, "a", echo, "a"), ctx.sleep(timedelta(0))]
        await asyncio.wait(futures)

    async def complete_in_order() -> None:
        for next_ in asyncio.as_completed([steps("a")]):
            await next_

    async def time_out_run() -> None:
        async with asyncio.timeout(0.1):
            await run_with_retry(ctx, "a", sleep, "a")

    async def time_out_map() -> None:
        async with asyncio.timeout(0.1):
            await map_concurrent(ctx, ["a"], lambda item, _: run_with_retry(ctx, item, sleep, item))

    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "gather": lambda: asyncio.gather(steps("a"), steps("b")),
        "gather of futures": gather_futures,
        "gather of calls": hide_failure_of_call,
        "TaskGroup": group,
        "create_task": lambda: asyncio.create_task(steps("a")),
        "create_task, not awaited": leave_task,
        "wait": lambda: asyncio.wait({asyncio.create_task(steps("a"))}),
        "wait for futures": wait_for_futures,
        "wait_for": lambda: asyncio.wait_for(steps("a"), 5),
        "shield": lambda: asyncio.shield(steps("a")),
        "as_completed": complete_in_order,
        "to_thread": lambda: asyncio.to_thread(ctx.sleep, timedelta(0)),
        "timeout": time_out_run,
        "gather in map_concurrent": lambda: map_concurrent(ctx, ["a"], lambda item, _: asyncio.gather(steps(item))),
        "timeout of map_concurrent": time_out_map,
    }
    await calls[tool]()
    return "not refused"


ASYNCIO = (
    "gather", "gather of futures", "gather of calls", "TaskGroup", "create_task", "create_task, not awaited", "wait",
    "wait for futures", "wait_for", "shield", "as_completed", "to_thread", "timeout", "gather in map_concurrent",
    "timeout of map_concurrent",
)  # fmt: skip


async def test_refuse_asyncio_around_durable_operations(restate):
    env = await restate.serve(tools)
    async with IngressClient(env.ingress) as ingress:
        outcomes = await asyncio.gather(*(outcome(ingress.call(use_asyncio, tool)) for tool in ASYNCIO))
    assert dict(zip(ASYNCIO, outcomes, strict=True)) == dict.fromkeys(ASYNCIO, "500 not_deterministic")


async def test_timeout_of_step_rolls_saga_back(restate, did: Recording):
    sagas = ControlPlaneService("TimedSagas")

    @sagas.compensation
    async def release(ctx: sdk.Context, name: str) -> None:
        did.add(f"released {name}")

    async def sleep(name: str) -> str:
        await asyncio.sleep(PATIENCE)
        return name

    @sagas.main
    async def book(cp: Orchestration, place: str) -> str:
        await cp.step("hold", echo, "12A", compensate=release.bind(f"{cp.key}/first"))
        try:
            async with asyncio.timeout(0.1):
                if place == "step":
                    await cp.step("sleep", sleep, "a", compensate=release.bind(f"{cp.key}/second"))
                else:
                    cp.add_compensation_step("release", f"{cp.key}/second")
                    await map_concurrent(cp.ctx, ["a"], lambda item, _: run_with_retry(cp.ctx, item, sleep, item))
        except Exception:  # noqa: BLE001 - also if the handler hides the error
            return await run_with_retry(cp.ctx, "fall back", echo, "not refused")
        return "not refused"

    env = await restate.serve(sagas, *hosting.definitions())

    async def play(ingress: IngressClient, place: str) -> str:
        key = str(uuid4())
        response = await outcome(ingress.call(book, place, key=key))
        for name in ("first", "second"):
            await eventually(lambda name=name: did.count(f"released {key}/{name}"), what=f"release of {place}/{name}")
        return response

    async with IngressClient(env.ingress) as ingress:
        outcomes = await asyncio.gather(play(ingress, "step"), play(ingress, "map_concurrent"))
    assert outcomes == ["500 not_deterministic submitted"] * 2


async def test_asyncio_is_free_inside_runs(restate):
    free = sdk.Service("AsyncioInside")

    @handler(free)
    async def inside(ctx: sdk.Context) -> list[str]:
        late: list[str] = []

        async def use_context() -> None:
            await asyncio.sleep(0.05)
            late.append("started")
            await run_with_retry(ctx, "late", echo, "late")

        async def leave_task_behind() -> str:
            tasks.append(asyncio.create_task(use_context()))
            async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                first = group.create_task(echo("a"))
            return " ".join([first.result(), *await asyncio.gather(asyncio.wait_for(echo("b"), 5))])

        tasks: list[asyncio.Task[None]] = []
        results = [await run_with_retry(ctx, "asyncio", leave_task_behind)]
        pair = await gather(ctx, run_async(ctx, "c", echo, "c"), ctx.sleep(timedelta(milliseconds=100)))
        results.append(str(pair[0]))
        for task in tasks:  # not when the run was replayed
            await asyncio.wait({task})
            assert "inside the run 'asyncio'" in str(task.exception())
        won: RaceResult[Any] = await race(ctx, ctx.sleep(timedelta(seconds=20)), run_async(ctx, "d", echo, "d"))
        return [*results, str(won.winner)]

    env = await restate.serve(free)
    async with IngressClient(env.ingress) as ingress:
        assert await asyncio.wait_for(ingress.call(inside), PATIENCE) == ["a b", "c", "d"]


async def test_lost_attempts_do_not_exhaust_runs(restate):
    lost = sdk.Service("LostAttempts")
    attempts: Counter[str] = Counter()

    @handler(lost)
    async def work(ctx: sdk.Context, key: str) -> None:
        async def act() -> None:
            attempts[key] += 1
            if attempts[key] in (1, 2, 4):
                context: Any = ctx
                await context.receive.enqueue_restate_event({"type": "http.disconnect"})
                await asyncio.sleep(PATIENCE)
            raise ValueError("no")

        await run_with_retry(ctx, "before", echo, "a")
        await run_with_retry(ctx, TWICE.named("odd"), act)

    env = await restate.serve(lost)
    key = str(uuid4())
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError, match=r"run exhausted retries \(2 attempts\)") as exhausted:
            await asyncio.wait_for(ingress.call(work, key), PATIENCE)
    assert attempts[key] == 5
    assert exhausted.value.metadata["lost_attempts"] == "3"


async def test_cancel_ends_hanging_steps(restate, did: Recording, monkeypatch):
    monkeypatch.setattr(user_code, "CANCEL_GRACE", 0.2)
    monkeypatch.setattr(user_code, "CLEANUP_GRACE", 0.2)
    monkeypatch.setattr(late_cancel, "INTERVAL", 0.2)
    stopped = threading.Event()
    sagas = ControlPlaneService("HangingSagas")

    async def never_return(_: str) -> None:
        await asyncio.Event().wait()

    async def block_thread(_: str) -> None:
        await asyncio.to_thread(stopped.wait, PATIENCE)

    async def ignore_cancel(_: str) -> None:
        while not stopped.is_set():
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                continue

    hanging = {step.__name__: step for step in (never_return, block_thread, ignore_cancel)}

    @sagas.compensation
    async def release(ctx: sdk.Context, name: str) -> None:
        did.add(f"released {name}")

    @sagas.main
    async def book(cp: Orchestration, way: str) -> None:
        await cp.step("hold", echo, "12A", compensate=release.bind(f"{cp.key}/first"))
        compensation = release.bind(f"{cp.key}/second")
        did.add(f"hanging {cp.key}")
        if way == "safe_step":
            step = SafeStep(cp.saga, "hang").with_compensation(compensation)
            await step.execute(lambda: never_return(way))
        elif way == "concurrent":
            runs = [run_async(cp.ctx, name, step, name) for name, step in hanging.items()]
            cp.add_compensation_step("release", f"{cp.key}/second")
            await gather(cp.ctx, *runs)
        else:
            await cp.step("hang", hanging[way], way, compensate=compensation)

    env = await restate.serve(sagas, *hosting.definitions())

    async def play(ingress: IngressClient, admin: AdminClient, way: str) -> str:
        key = str(uuid4())
        invocation_id = await ingress.submit(book, way, key=key)
        await eventually(lambda: did.count(f"hanging {key}"), what="hanging step")
        await admin.control_invocation(invocation_id, "cancel")
        for name in ("first", "second"):
            await eventually(lambda name=name: did.count(f"released {key}/{name}"), what=f"release of {way}/{name}")
        return await outcome(ingress.attach(book, key=key))

    ways = [*hanging, "safe_step", "concurrent"]
    try:
        async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
            outcomes = await asyncio.gather(*(play(ingress, admin, way) for way in ways))
    finally:
        stopped.set()
    assert dict(zip(ways, outcomes, strict=True)) == dict.fromkeys(ways, "409 cancelled submitted")

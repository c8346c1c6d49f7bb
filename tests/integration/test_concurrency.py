"""Several things at once: in the order of the input, bounded, the same at every replay, and nothing lost on the way.

Every handler here has one attempt. A journal that comes out differently at a replay ends it, so each test also shows
that there was none, and two of the three modes replay at every wait.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import (
    AdminClient,
    IngressClient,
    ObjectClient,
    RunConfig,
    ServiceClient,
    Target,
    fan_out,
    fan_out_fail,
    for_each,
    gather,
    get_internal_signal,
    map_concurrent,
    process_batch,
    race,
    run_async,
    run_with_retry,
    wait_for_external_signal,
)
from perdure.admin import sql_text
from perdure.binding import handler
from perdure.errors import Cancelled, IngressError, Refused, RunExhausted, TerminalError, error_code
from tests.support import Recording, eventually

ONE_ATTEMPT = sdk.InvocationRetryPolicy(max_attempts=1, on_max_attempts="kill")

go = Target("Callers", "go", str, list[str])


class Job(BaseModel):
    key: str
    number: int
    after: timedelta = timedelta(0)


after = Target("Workers", "after", Job, int)
square = Target("Workers", "square", Job, int)
crowded = Target("Workers", "crowded", Job, int)
lasting = Target("Workers", "lasting", Job, int)
append = Target("Lists", "append", int, list[int])


class Crowd:
    """Who is inside at once. Each stays until so many are, or until all have come."""

    def __init__(self, size: int, everyone: int) -> None:
        self.most = 0
        self._size, self._left_to_come = size, everyone
        self._inside = 0
        self._changed = threading.Condition()

    def pass_through(self) -> None:
        with self._changed:
            self._inside += 1
            self._left_to_come -= 1
            self.most = max(self.most, self._inside)
            self._changed.notify_all()
            full = self._changed.wait_for(lambda: self.most >= self._size or not self._left_to_come, timeout=10)
            assert full, f"only {self.most} were ever inside at once"
        time.sleep(0.02)  # what work takes; the next one must wait for it
        with self._changed:
            self._inside -= 1


def workers(did: Recording, crowd: Crowd | None = None) -> list[Any]:
    service, lists = sdk.Service("Workers"), sdk.VirtualObject("Lists")

    @handler(service, name="after", invocation_retry_policy=ONE_ATTEMPT)
    async def _after(ctx: sdk.Context, job: Job) -> int:
        if job.after:
            await ctx.sleep(job.after)
        if job.number < 0:
            raise Refused(f"no {job.number}", 410, "negative", {"number": str(job.number)})
        return job.number

    @handler(service, name="square", invocation_retry_policy=ONE_ATTEMPT)
    async def _square(ctx: sdk.Context, job: Job) -> int:
        return job.number**2

    @handler(service, name="crowded", invocation_retry_policy=ONE_ATTEMPT)
    async def _crowded(ctx: sdk.Context, job: Job) -> int:
        assert crowd is not None
        await run_with_retry(ctx, RunConfig("stay", max_retries=0), crowd.pass_through)
        return job.number

    @handler(service, name="lasting", invocation_retry_policy=ONE_ATTEMPT)
    async def _lasting(ctx: sdk.Context, job: Job) -> int:
        did.add(f"{job.key}/{ctx.request().id}")
        await wait_for_external_signal(ctx, int).result()
        return job.number

    @handler(lists, "exclusive", name="append", invocation_retry_policy=ONE_ATTEMPT)
    async def _append(ctx: sdk.ObjectContext, number: int) -> list[int]:
        numbers = [*(await ctx.get("numbers", type_hint=list) or []), number]
        ctx.set("numbers", numbers)
        return numbers

    return [service, lists]


Work = Callable[[Any, str], Awaitable[list[object]]]


def calling(work: Work) -> sdk.Service:
    service = sdk.Service("Callers")

    @handler(service, name="go", invocation_retry_policy=ONE_ATTEMPT)
    async def _go(ctx: sdk.Context, key: str) -> list[str]:
        return [str(item) for item in await work(ctx, key)]

    return service


async def done(restate, did: Recording, work: Work, crowd: Crowd | None = None) -> list[str]:
    env = await restate.serve(calling(work), *workers(did, crowd))
    async with IngressClient(env.ingress) as ingress:
        return await ingress.call(go, str(uuid4()))


async def failure(restate, did: Recording, work: Work) -> IngressError:
    with pytest.raises(IngressError) as failed:
        await done(restate, did, work)
    return failed.value


def ms(milliseconds: int) -> timedelta:
    return timedelta(milliseconds=milliseconds)


# --- map_concurrent ---------------------------------------------------------------------------------------------------


async def test_functions_of_many_steps_run_together_and_do_the_same_at_every_replay(restate, did):
    # Each item takes its own way through calls, runs, timers, state of others, and a nested map; the first ends last.
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


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_than_the_limit_are_under_way_and_as_many_as_it_allows(restate, did, limit):
    crowd = Crowd(limit, everyone=8)

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, crowded)
        return await map_concurrent(  # a function may also return the future of one call
            ctx, range(8), lambda number, index: client.call_async(Job(key=key, number=number + index)), limit=limit
        )

    assert await done(restate, did, work, crowd) == [str(2 * number) for number in range(8)]
    assert crowd.most == limit


async def test_a_failing_item_of_a_map_lets_the_others_end_and_no_other_begin(restate, did):
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


# --- for_each, process_batch ------------------------------------------------------------------------------------------


async def test_one_after_the_other_and_chunk_after_chunk(restate, did):
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


class Case(BaseModel):
    key: str
    name: str


case = Target("Cases", "case", Case, list[str])


def cases(did: Recording, **works: Work) -> list[Any]:
    """Return services of which one does the work that is named."""
    service = sdk.Service("Cases")

    @handler(service, name="case", invocation_retry_policy=ONE_ATTEMPT)
    async def _case(ctx: sdk.Context, request: Case) -> list[str]:
        return [str(item) for item in await works[request.name](ctx, request.key)]

    return [service, *workers(did)]


async def test_a_failure_says_where_and_keeps_class_status_code_and_metadata(restate, did):
    seen: dict[str, TerminalError] = {}

    def job(key: str, number: int, after: int = 0) -> Job:
        return Job(key=key, number=number, after=ms(after))

    async def each(ctx: sdk.Context, key: str) -> list[object]:
        await for_each(ctx, [1, 2, -3, 4], lambda number, _: ServiceClient(ctx, after).call(job(key, number)))
        return []

    async def batch(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, after).call_async
        return await process_batch(ctx, [1, 2, 3, -4, 5], lambda number, _: call(job(key, number)), size=2)

    async def out(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, after).call_async
        # The first to fail is the last that was given.
        return await fan_out_fail(ctx, [call(job(key, -1, 3000)), call(job(key, 2)), call(job(key, -3, 20))])

    async def all_of(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, after).call_async
        return list(await gather(ctx, call(job(key, 1)), call(job(key, -2, 40)), call(job(key, -3))))

    async def first(ctx: sdk.Context, key: str) -> list[object]:
        call = ServiceClient(ctx, after).call_async
        return [await race(ctx, call(job(key, 1, 3000)), call(job(key, -2)))]

    async def exhausted(ctx: sdk.Context, key: str) -> list[object]:
        def broken() -> int:
            raise ValueError("broken")

        try:
            await fan_out_fail(ctx, [run_async(ctx, RunConfig("broken", max_retries=0), broken)])
        except TerminalError as error:
            seen["exhausted"] = error
            raise
        return []

    env = await restate.serve(
        *cases(did, each=each, batch=batch, out=out, all_of=all_of, first=first, exhausted=exhausted)
    )
    async with IngressClient(env.ingress) as ingress:

        async def failed(name: str) -> IngressError:
            with pytest.raises(IngressError) as error:
                await ingress.call(case, Case(key=str(uuid4()), name=name))
            return error.value

        refused = {"code": "negative"}
        for name, message, facts in (
            ("each", "foreach failed at index 2: no -3", {"index": "2", "number": "-3"}),
            ("batch", "batch processing failed at chunk 1: no -4", {"index": "3", "chunk": "1", "number": "-4"}),
            ("out", "fanout operation 2 failed: no -3", {"index": "2", "number": "-3"}),
            ("all_of", "gather future error at index 1: no -2", {"index": "1", "number": "-2"}),
            ("first", "race operation 1 failed: no -2", {"index": "1", "number": "-2"}),
        ):
            error = await failed(name)
            assert (error.status_code, error.message, error.metadata) == (410, message, {**refused, **facts})
        error = await failed("exhausted")
        assert error.message.startswith("fanout operation 0 failed: run exhausted retries (1 attempts) for broken")
        assert error.metadata == {"code": "run_exhausted", "run": "broken", "index": "0"}
    assert isinstance(seen["exhausted"], RunExhausted)
    assert isinstance(seen["exhausted"].__cause__, RunExhausted)
    assert str(seen["exhausted"]) == seen["exhausted"].message


# --- fan_out, gather, race --------------------------------------------------------------------------------------------


async def test_results_are_values_in_the_order_of_the_input(restate, did):
    # DEFECT of the Go original: results stayed zero values, and the order of completion was taken for the index.
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


async def test_calls_runs_timers_and_signals_are_waited_for_together(restate, did):
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


async def test_losers_are_cancelled_on_request_and_else_go_on(restate, did):
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


async def test_a_cancel_of_the_caller_ends_the_whole_and_is_no_failure_of_an_item(restate, did):
    # DEFECT of the Go original's collecting loop: a cancel would be one error among the others, and the caller go on.
    def work(take: Callable[[sdk.Context, list[Any]], Awaitable[object]], *, start: bool = True) -> Work:
        async def run(ctx: sdk.Context, key: str) -> list[object]:
            call = ServiceClient(ctx, lasting).call_async
            jobs: list[Any] = [Job(key=key, number=number) for number in range(2)]
            try:
                await take(ctx, [call(job) for job in jobs] if start else [(call, job) for job in jobs])
            except TerminalError as error:
                did.add(f"{key}-end/{type(error).__name__} {error.message} {isinstance(error, Cancelled)}")
                raise
            return ["not cancelled"]

        return run

    async def body(pair: Any, _: int) -> int:
        call, job = pair
        return await call(job)

    works = {
        "fan_out": work(fan_out),
        "fan_out_fail": work(fan_out_fail),
        "gather": work(lambda ctx, calls: gather(ctx, *calls)),
        "race": work(lambda ctx, calls: race(ctx, *calls, cancel_losers=True)),
        "map_concurrent": work(lambda ctx, pairs: map_concurrent(ctx, pairs, body), start=False),
        "process_batch": work(lambda ctx, pairs: process_batch(ctx, pairs, body), start=False),
        "foreach": work(lambda ctx, pairs: for_each(ctx, pairs, body), start=False),
    }
    env = await restate.serve(*cases(did, **works))
    async with IngressClient(env.ingress, admin_url=env.admin) as ingress:
        keys = {name: str(uuid4()) for name in works}
        ids = {name: await ingress.send(case, Case(key=key, name=name)) for name, key in keys.items()}
        for name, key in keys.items():

            async def begun(key: str = key, calls: int = 1 if name == "foreach" else 2) -> bool:
                return len(set(did.of(key))) >= calls

            await eventually(begun, what=f"calls of {name}")
            await ingress.cancel(ids[name])
        for name, key in keys.items():
            with pytest.raises(IngressError) as cancelled:
                await ingress.attach(case, invocation_id=ids[name])
            assert cancelled.value.status_code == 409
            message = "cancelled" if name == "foreach" else f"cancelled during {name}"
            assert cancelled.value.message == message
            assert set(did.of(f"{key}-end")) == {f"Cancelled {message} True"}


async def test_a_cancel_lets_a_running_action_come_to_its_end_before_the_whole_ends(restate, did):
    # Else whatever undoes the action could be overtaken by it, see `run_with_retry`.
    begun, may_end = threading.Event(), threading.Event()

    def act(key: str) -> None:
        begun.set()
        assert may_end.wait(20), "the test never let the action end"
        did.add(f"{key}/acted")

    async def acting(ctx: sdk.Context, key: str) -> list[object]:
        async def body(number: int, _: int) -> None:
            if number:
                await wait_for_external_signal(ctx, int).result()
            await run_with_retry(ctx, RunConfig("act", max_retries=0), act, key)

        try:
            return list(await map_concurrent(ctx, [0, 1], body))
        except Cancelled:
            did.add(f"{key}/ended")
            raise

    env = await restate.serve(*cases(did, acting=acting))
    async with IngressClient(env.ingress, admin_url=env.admin) as ingress:
        key = str(uuid4())
        id_ = await ingress.send(case, Case(key=key, name="acting"))

        async def acts() -> bool:
            return begun.is_set()

        await eventually(acts, what="action")
        await ingress.cancel(id_)
        may_end.set()
        with pytest.raises(IngressError, match="cancelled during map_concurrent"):
            await ingress.attach(case, invocation_id=id_)
    assert did.of(key)[0] == "acted"
    assert set(did.of(key)) == {"acted", "ended"}


# --- what is refused --------------------------------------------------------------------------------------------------


async def test_what_can_not_be_done_right_is_refused_with_what_to_do_instead(restate, did):
    async def coroutine(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, square)
        job = Job(key=key, number=1)
        return list(await gather(ctx, client.call_async(job), client.call(job), client.call(job)))  # type: ignore[call-overload]

    async def nobody(ctx: sdk.Context, key: str) -> list[object]:
        return [await race(ctx)]

    async def no_limit(ctx: sdk.Context, key: str) -> list[object]:
        return await map_concurrent(ctx, [1], lambda number, _: ctx.sleep(ms(number)), limit=0)

    async def no_size(ctx: sdk.Context, key: str) -> list[object]:
        return await process_batch(ctx, [1], lambda number, _: ctx.sleep(ms(number)), size=0)

    async def inside_run(ctx: sdk.Context, key: str) -> list[object]:
        # DEFECT of the Go original: ParallelInvoke called the context inside a run.
        async def action() -> None:
            await map_concurrent(ctx, [1], lambda number, _: ctx.sleep(ms(number)))

        await run_with_retry(ctx, "outer", action)
        return []

    async def asyncios(ctx: sdk.Context, key: str) -> list[object]:
        async def body(number: int, _: int) -> list[int]:
            job = Job(key=key, number=number)
            return await asyncio.gather(ServiceClient(ctx, square).call(job), ServiceClient(ctx, square).call(job))

        return list(await map_concurrent(ctx, [1, 2], body))

    works: dict[str, Work] = {
        "coroutine": coroutine, "nobody": nobody, "no_limit": no_limit, "no_size": no_size, "inside_run": inside_run,
        "asyncios": asyncios,
    }  # fmt: skip
    env = await restate.serve(*cases(did, **works))
    start_it_first = (
        "operation 1 is the coroutine _Client.call, which is no durable future. "
        "Start it first, with call_async or run_async"
    )
    async with IngressClient(env.ingress) as ingress:
        for name, status, code, message in (
            ("coroutine", 500, "not_durable", start_it_first),
            ("nobody", 400, "invalid_input", "race requires at least one future"),
            ("no_limit", 400, "invalid_input", "the limit is 1 or more, not 0"),
            ("no_size", 400, "invalid_input", "a chunk has 1 item or more, not 0"),
            ("asyncios", 500, "not_deterministic", "Use perdure's gather, race or map_concurrent"),
            ("inside_run", 500, "context_inside_run", "map_concurrent was used inside the run 'outer'"),
        ):  # fmt: skip
            with pytest.raises(IngressError, match=message) as refused:
                await ingress.call(case, Case(key="", name=name))
            assert (refused.value.status_code, refused.value.code) == (status, code)

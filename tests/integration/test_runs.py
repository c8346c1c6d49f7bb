"""Runs on a real engine: retried with the engine's backoff, journaled once, and never a place for the context."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from pydantic import BaseModel
from restate.exceptions import RetryableError

from perdure import AdminClient, IngressClient, RunConfig, Target, run_async, run_with_retry
from perdure.admin import sql_text
from perdure.binding import handler
from perdure.errors import Cancelled, IngressError, Refused, TerminalError, error_code
from tests.support import Recording, eventually

QUICK = RunConfig("work", initial_delay=timedelta(milliseconds=5), max_delay=timedelta(milliseconds=20))


class Part(BaseModel):
    name: str
    sizes: list[int] = []


go = Target("Runs", "go", str, str)


def serving(work: Callable[[sdk.Context, str], Awaitable[str]], **options: Any) -> sdk.Service:
    """Return a service whose handler ``go`` does the work, given a key that is new for each test."""
    service = sdk.Service("Runs")

    async def named(ctx: sdk.Context, key: str) -> str:
        return await work(ctx, key)

    handler(service, name="go", **options)(named)
    return service


async def result_of(restate, work: Callable[[sdk.Context, str], Awaitable[str]]) -> str:
    env = await restate.serve(serving(work))
    async with IngressClient(env.ingress) as ingress:
        return await ingress.call(go, str(uuid4()))


async def failure_of(restate, work: Callable[[sdk.Context, str], Awaitable[str]]) -> IngressError:
    with pytest.raises(IngressError) as failed:
        await result_of(restate, work)
    assert failed.value.source == "invocation"
    return failed.value


def failing(did: Recording, times: int, error: Exception) -> Callable[[], str]:
    """Return an action that fails so many times, and records each attempt."""

    def action() -> str:
        did.add("attempt")
        if did.count("attempt") <= times:
            raise error
        return "done"

    return action


# --- retries ---------------------------------------------------------------------------------------------------------


async def test_a_run_is_retried_until_it_succeeds_and_then_never_again(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        first = await run_with_retry(ctx, QUICK, failing(did, 2, OSError("gone")))
        await ctx.sleep(timedelta(milliseconds=1))  # a replay, in two of the modes
        return first

    assert await result_of(restate, work) == "done"
    assert did.count("attempt") == 3


async def test_a_terminal_error_stops_at_once_and_keeps_code_message_and_metadata(restate, did):
    refusal = Refused("no seats left", 410, "seats_sold_out", {"flight": "PD100"})
    caught: list[TerminalError] = []

    async def work(ctx: sdk.Context, key: str) -> str:
        try:
            return await run_with_retry(ctx, QUICK, failing(did, 99, refusal))
        except TerminalError as error:
            caught.append(error)
            raise

    error = await failure_of(restate, work)
    assert did.count("attempt") == 1
    assert (error.status_code, error.message) == (410, "no seats left")
    assert error.metadata == {"code": "seats_sold_out", "flight": "PD100"}
    # The handler itself sees the same, also after a replay, when the error comes from the journal.
    assert {(seen.message, seen.status_code, error_code(seen)) for seen in caught} == {
        ("no seats left", 410, "seats_sold_out")
    }


@pytest.mark.parametrize(
    "failure",
    [OSError("gone"), RetryableError("gone"), RetryableError("gone", 503, timedelta(milliseconds=5))],
    ids=["exception", "retryable", "retryable after"],
)
async def test_running_out_of_attempts_names_the_run_the_attempts_and_the_last_cause(restate, did, failure):
    async def work(ctx: sdk.Context, key: str) -> str:
        settings = RunConfig("charge", max_retries=2, initial_delay=timedelta(milliseconds=5))
        return await run_with_retry(ctx, settings, failing(did, 99, failure))

    error = await failure_of(restate, work)
    assert did.count("attempt") == 3
    assert error.message == f"run exhausted retries (3 attempts) for charge: {failure!r}"
    assert error.status_code == 500
    assert error.metadata == {"code": "run_exhausted", "run": "charge"}


async def test_a_retryable_error_says_itself_when_it_wants_to_be_retried(restate, did):
    times: list[float] = []
    wait = timedelta(milliseconds=300)

    def action() -> str:
        times.append(time.monotonic())
        if len(times) < 2:
            raise RetryableError("busy", retry_after=wait)
        return "done"

    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, QUICK, action)

    assert await result_of(restate, work) == "done"
    assert times[1] - times[0] >= wait.total_seconds() * 0.9


async def test_the_body_at_the_ingress_has_no_stack_trace(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, RunConfig("charge", max_retries=0), failing(did, 99, OSError("gone")))

    env = await restate.serve(serving(work))
    async with httpx.AsyncClient() as http:
        response = await http.post(f"{env.ingress}/Runs/go", json="x")
    assert response.json()["message"] == "run exhausted retries (1 attempts) for charge: OSError('gone')"
    assert "Traceback" not in response.text


# --- each setting has an effect --------------------------------------------------------------------------------------


async def waits(restate, config: RunConfig, failures: int) -> list[float]:
    """Return the seconds between the attempts of a run that fails so many times."""
    times: list[float] = []

    def action() -> str:
        times.append(time.monotonic())
        if len(times) <= failures:
            raise OSError("gone")
        return "done"

    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, config, action)

    assert await result_of(restate, work) == "done"
    return [later - earlier for earlier, later in itertools.pairwise(times)]


async def test_initial_delay_and_backoff_factor(restate):
    config = RunConfig("work", initial_delay=timedelta(milliseconds=100), backoff_factor=3)
    first, second = await waits(restate, config, failures=2)
    assert first >= 0.09
    assert second >= 0.27


async def test_max_delay_caps_the_wait(restate):
    config = RunConfig(
        "work", initial_delay=timedelta(milliseconds=20), max_delay=timedelta(milliseconds=40), backoff_factor=100
    )
    assert max(await waits(restate, config, failures=3)) < 1.5  # without a cap: 2 s and 200 s


async def test_max_duration_ends_a_run_that_has_no_other_bound(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        config = RunConfig(
            "work",
            max_retries=None,
            initial_delay=timedelta(milliseconds=50),
            max_delay=timedelta(milliseconds=50),
            max_duration=timedelta(milliseconds=400),
        )
        return await run_with_retry(ctx, config, failing(did, 1_000, OSError("gone")))

    error = await failure_of(restate, work)
    assert error.message == "run exhausted retries (0.4 s) for work: OSError('gone')"
    assert 2 <= did.count("attempt") <= 9


async def test_the_name_is_in_the_journal(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, "charge the card", failing(did, 0, OSError()))

    env = await restate.serve(serving(work))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        invocation_id = await ingress.send(go, str(uuid4()))

        async def journaled() -> bool:
            rows = await admin.query(f"select name from sys_journal where id = {sql_text(invocation_id)}")
            return "charge the card" in [row.get("name") for row in rows]

        await eventually(journaled, what="run of that name in the journal")


async def test_a_run_without_a_name_is_said(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        try:
            await run_with_retry(ctx, RunConfig(), failing(did, 0, OSError()))
        except Exception as error:
            raise TerminalError(str(error)) from error
        return "not reached"

    error = await failure_of(restate, work)
    assert error.message == "a run needs a name: RunConfig(name) or RunConfig(...).named(name)"
    assert did.all() == []


# --- kinds of actions and results ------------------------------------------------------------------------------------


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


async def test_every_kind_of_action_gives_its_typed_result(restate):
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
        seen.append(results)  # after a replay they come from the journal
        return "done"

    assert await result_of(restate, work) == "done"
    assert seen == [[*[Part(name="a")] * 6, parts(2), None, {"plain": [1, None]}]]


async def test_a_sync_action_does_not_block_the_event_loop(restate):
    threads: list[threading.Thread] = []

    async def work(ctx: sdk.Context, key: str) -> str:
        loops = threading.current_thread()
        await run_with_retry(ctx, "sync", lambda: threads.append(threading.current_thread()))
        threads.append(loops)
        return "done"

    await result_of(restate, work)
    assert threads[0] is not threads[-1]


async def test_a_result_that_could_not_be_read_back_fails_the_run_once_and_for_good(restate, did):
    def action() -> Part:
        did.add("attempt")
        return "no part"  # type: ignore[return-value] # the mistake under test

    async def work(ctx: sdk.Context, key: str) -> str:
        return (await run_with_retry(ctx, QUICK, action)).name

    error = await failure_of(restate, work)
    assert did.count("attempt") == 1
    assert "a value of class str can't be written as Part" in error.message
    assert error.metadata["code"] == "unwritable"


async def test_an_error_with_metadata_that_is_no_text_still_ends_the_run(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        refusal = Refused("no seats left", metadata={"left": 0})  # type: ignore[dict-item] # the mistake under test
        return await run_with_retry(ctx, QUICK, failing(did, 99, refusal))

    error = await failure_of(restate, work)
    assert (error.message, error.metadata["left"]) == ("no seats left", "0")


async def test_runs_that_were_started_together_run_together(restate):
    both = threading.Barrier(2)

    def meet() -> int:
        return both.wait(timeout=20)

    async def work(ctx: sdk.Context, key: str) -> str:
        one, two = run_async(ctx, "one", meet), run_async(ctx, "two", meet)
        await sdk.gather(one.future, two.future)
        return str(sorted([await one, await two]))

    assert await result_of(restate, work) == "[0, 1]"


async def test_a_run_is_waited_for_with_others(restate):
    async def work(ctx: sdk.Context, key: str) -> str:
        run = run_async(ctx, "work", lambda: "done", returns=str)
        first, _ = await sdk.select(run=run.future, late=ctx.sleep(timedelta(hours=1)))
        return f"{first} {await run}"

    assert await result_of(restate, work) == "run done"


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_a_cancel_lets_the_running_action_end_and_is_told_from_an_applications_409(restate, did):
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
        await admin.act(invocation_id, "cancel")

        async def gave_up() -> bool:
            return len(did.all()) > 1

        with pytest.raises(AssertionError):  # it must not, while the action is running
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


@pytest.mark.restate_modes("http2")
async def test_a_crash_while_a_cancelled_run_settles_does_not_start_the_action_anew(restate, did):
    opened = threading.Event()

    def action() -> str:
        did.add("start")
        assert opened.wait(30), "the test never opened the gate"
        return "done"

    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, RunConfig("charge", max_retries=0), action)

    # The engine breaks off the attempt that settles, as a crash would, and starts another one.
    second = timedelta(seconds=1)
    env = await restate.serve(serving(work, inactivity_timeout=second, abort_timeout=second))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.send(go, key, idempotency_key=key)

        async def started() -> bool:
            return did.count("start") == 1

        await eventually(started, what="start of the action")
        await admin.act(invocation_id, "cancel")
        try:
            with pytest.raises(IngressError) as ended:
                await ingress.call(go, key, idempotency_key=key)
        finally:
            opened.set()
    assert (ended.value.status_code, ended.value.code) == (409, "cancelled")
    assert did.count("start") == 1


async def test_an_applications_own_409_is_no_cancel(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        try:
            return await run_with_retry(ctx, QUICK, failing(did, 99, TerminalError("cancelled", 409)))
        except Cancelled:
            did.add("taken for a cancel")
            raise

    error = await failure_of(restate, work)
    assert (error.status_code, error.message) == (409, "cancelled")
    assert did.all() == ["attempt"]


async def test_a_result_that_the_engine_would_not_take_ends_the_run_instead_of_repeating_it(restate, did):
    def read() -> bytes:
        did.add("attempt")
        return bytes(25 * 1024 * 1024)  # as base64 it's a third more

    async def work(ctx: sdk.Context, key: str) -> str:
        return str(len(await run_with_retry(ctx, RunConfig("read the file"), read)))

    error = await failure_of(restate, work)
    assert did.all() == ["attempt"]
    assert error.message.startswith("run 'read the file': its result has 34,952,538 bytes, and the engine takes")
    assert error.metadata == {"code": "too_large", "run": "read the file"}

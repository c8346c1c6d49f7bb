"""Timers and loops: replays, limits and cancels."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    IngressClient,
    Target,
    Time,
    WorkflowLoop,
    WorkflowTimer,
    get_internal_signal,
    handler,
    run_with_retry,
)
from perdure._runtime.time_scale import scaling
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, Refused, TerminalError
from perdure.testing.served import Mode
from tests.support import Recording, eventually

TICK = timedelta(milliseconds=1)
DAY = timedelta(days=1)

go = Target("Tools", "go", str, list[Any])


def serving(work: Callable[[sdk.Context, str], Awaitable[list[Any]]]) -> sdk.Service:
    """Return a service whose handler ``go`` runs the function with a fresh key."""
    service = sdk.Service("Tools")

    async def named(ctx: sdk.Context, key: str) -> list[Any]:
        return await work(ctx, key)

    handler(service, name="go")(named)
    return service


async def result_of(restate, work: Callable[[sdk.Context, str], Awaitable[list[Any]]]) -> list[Any]:
    env = await restate.serve(serving(work))
    async with IngressClient(env.ingress) as ingress:
        return await ingress.call(go, str(uuid4()))


async def failure_of(restate, work: Callable[[sdk.Context, str], Awaitable[list[Any]]]) -> IngressError:
    with pytest.raises(IngressError) as failed:
        await result_of(restate, work)
    assert failed.value.source == "invocation"
    return failed.value


async def noted(ctx: sdk.Context, did: Recording, entry: str) -> None:
    """Record an entry once, independent of replays."""
    await run_with_retry(ctx, "note", did.add, entry)


# --- timers ----------------------------------------------------------------------------------------------------------


async def test_sleep_until_replays_after_deadline(restate, did, caplog):
    caplog.set_level(logging.INFO, "perdure.workflow")
    past = datetime(2026, 1, 1, tzinfo=UTC)

    async def work(ctx: sdk.Context, key: str) -> list[Any]:
        did.add("attempt")
        timer = WorkflowTimer(ctx)
        soon = await Time(ctx).now() + timedelta(milliseconds=300)
        await timer.sleep_until(soon, "soon")
        ended = datetime.now(UTC)
        await timer.sleep_until(past)
        await timer.sleep(-DAY)
        winner, _ = await sdk.select(long=timer.after(DAY), short=timer.after(TICK))
        await timer.sleep(TICK, "tick")
        return [ended >= soon, winner]

    assert await result_of(restate, work) == [True, "short"]
    ours = [record for record in caplog.records if record.name == "perdure.workflow"]
    warnings = [record.getMessage() for record in ours if record.levelno == logging.WARNING]
    assert len(warnings) == 1, "a time in the past is logged once, not at each replay"
    assert warnings[0].startswith("workflow: target time in past, skipping sleep")
    assert "2026-01-01" in warnings[0]
    if restate.mode is not Mode.HTTP2:
        assert did.count("attempt") > 4, "the handler was not replayed"


async def test_reject_time_without_zone(restate):
    async def work(ctx: sdk.Context, key: str) -> list[Any]:
        await WorkflowTimer(ctx).sleep_until(datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake under test
        return []

    error = await failure_of(restate, work)
    assert (error.status_code, error.code) == (400, "invalid_input")


# --- loops -----------------------------------------------------------------------------------------------------------


def signup(did: Recording) -> tuple[sdk.Workflow, dict[str, Any]]:
    """The reminder loop of the seed, section 11."""
    flow = sdk.Workflow("Signup")

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext) -> int:
        did.add("attempt")
        loop = WorkflowLoop(ctx, 10_000)

        async def not_verified() -> bool:
            return await get_internal_signal(ctx, "email-verified", str).peek() is None

        async def remind(iteration: int) -> None:
            await noted(ctx, did, f"remind {ctx.key()}/{iteration}")
            await WorkflowTimer(ctx).sleep(timedelta(seconds=15))

        return await loop.while_(not_verified, remind)

    @handler(flow, "shared")
    async def verify(ctx: sdk.WorkflowSharedContext, secret: str) -> None:
        await get_internal_signal(ctx, "email-verified", str).resolve(secret)

    return flow, {"run": run, "verify": verify}


async def test_reminder_loop_until_verified(restate, did):
    flow, to = signup(did)
    env = await restate.serve(flow)
    key = str(uuid4())

    async def three_reminders() -> bool:
        return len(did.of(key)) >= 3

    async with IngressClient(env.ingress) as ingress:
        with scaling(1500):
            await ingress.send(to["run"], key=key)
            await eventually(three_reminders, what="third reminder")
            await ingress.call(to["verify"], "secret", key=key)
            iterations = await ingress.attach(to["run"], key=key)
    assert did.of(key) == [f"remind {number}" for number in range(iterations)]
    if restate.mode is not Mode.HTTP2:
        assert did.count("attempt") > iterations, "the handler was not replayed"


async def test_loop_ends_at_limit(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[Any]:
        loop, left = WorkflowLoop(ctx, 3), [3]

        def some_left() -> bool:
            return left[0] > 0

        async def take(iteration: int) -> None:
            left[0] -= 1
            await noted(ctx, did, f"first {iteration}")

        as_often_as_it_may = await loop.while_(some_left, take)
        await loop.while_(lambda: True, lambda iteration: noted(ctx, did, f"second {iteration}"))
        return [as_often_as_it_may]

    error = await failure_of(restate, work)
    assert (error.status_code, error.code) == (500, "loop_limit")
    assert error.message == "workflow loop exceeded max iterations: 3"
    assert did.all() == [f"{loop} {number}" for loop in ("first", "second") for number in range(3)]


async def test_failure_names_iteration(restate, did):
    refusal = Refused("no seats left", 410, "seats_sold_out", {"flight": "PD100"})

    async def refuse(at: int, iteration: int) -> bool:
        if iteration == at:
            raise refusal
        return True

    async def work(ctx: sdk.Context, key: str) -> list[Any]:
        loop = WorkflowLoop(ctx)
        seen = []
        asked = iter(range(9))
        for attempt in (
            lambda: loop.while_(lambda: True, lambda iteration: refuse(2, iteration)),
            lambda: loop.while_(lambda: refuse(1, next(asked)), lambda iteration: None),
            lambda: loop.for_each(["a", "b"], lambda item, index: refuse(1, index)),
            lambda: loop.for_each({"a"}, lambda item, index: index),  # type: ignore[arg-type] # the mistake under test
            lambda: WorkflowLoop(ctx, 2).for_each("abc", lambda item, index: index),
        ):
            try:
                await attempt()
            except TerminalError as error:
                facts = error.metadata or {}
                seen.append([error.message, error.status_code, facts["code"], facts.get("iteration")])
            await ctx.sleep(TICK)
        return [*seen, await loop.for_each(["a", "b"], lambda item, index: f"{index}{item}")]

    assert await result_of(restate, work) == [
        ["loop body failed at iteration 2: no seats left", 410, "seats_sold_out", "2"],
        ["loop condition failed at iteration 1: no seats left", 410, "seats_sold_out", "1"],
        ["foreach failed at index 1: no seats left", 410, "seats_sold_out", "1"],
        [
            "for_each: a set has no order that a replay can repeat; pass sorted(items)",
            400,
            "invalid_input",
            None,
        ],
        ["workflow loop exceeded max iterations: 2; for_each received 3 items", 500, "loop_limit", None],
        ["0a", "1b"],
    ]


async def test_retry_terminal_errors_with_durable_waits(restate, did):
    def flaky(entry: str, good_from: int) -> Callable[[int], str]:
        def action(attempt: int) -> str:
            did.add(entry)
            if attempt < good_from:
                raise Refused(f"busy at {attempt}", 503, "busy")
            return f"sent at {attempt}"

        return action

    async def work(ctx: sdk.Context, key: str) -> list[Any]:
        loop = WorkflowLoop(ctx)

        def tried(entry: str, good_from: int) -> Callable[[int], Awaitable[str]]:
            return lambda attempt: run_with_retry(ctx, "send", flaky(entry, good_from), attempt)

        sent = await loop.retry(tried("good", 2), 3, TICK)
        failures = []
        for options in ({}, {"retry_on": lambda error: error.status_code != 503}):
            try:
                await loop.retry(tried(f"bad {len(failures)}", 99), 3, TICK, **options)
            except TerminalError as error:
                facts = error.metadata or {}
                failures.append([error.message, error.status_code, facts["code"], facts.get("cause_code")])
        return [sent, *failures]

    assert await result_of(restate, work) == [
        "sent at 2",
        ["retry exhausted after 3 attempts: busy at 2", 500, "retry_exhausted", "busy"],
        ["busy at 0", 503, "busy", None],
    ]
    assert [did.count(each) for each in ("good", "bad 0", "bad 1")] == [3, 3, 1]


async def test_retry_waits_double_up_to_limit(restate):
    waits: list[timedelta] = []

    class Counted(WorkflowTimer):
        async def sleep(self, duration: timedelta, name: str | None = None) -> None:
            waits.append(duration)

    async def work(ctx: sdk.Context, key: str) -> list[Any]:
        loop = WorkflowLoop(ctx)
        loop._timer = Counted(ctx)

        def fail(attempt: int) -> None:
            raise Refused("no")

        try:
            await loop.retry(fail, 6, timedelta(minutes=1))
        except TerminalError as error:
            return [error.message]
        return []

    assert await result_of(restate, work) == ["retry exhausted after 6 attempts: no"]
    assert waits == [timedelta(minutes=each) for each in (1, 2, 4, 5, 5)]


@pytest.mark.parametrize("kind", ["while", "retry", "for_each"])
async def test_cancel_passes_through_loop(restate, did, kind):
    async def work(ctx: sdk.Context, key: str) -> list[Any]:
        loop = WorkflowLoop(ctx)

        async def body(*_: Any) -> None:
            await noted(ctx, did, "waits")
            await ctx.sleep(DAY)

        if kind == "while":
            await loop.while_(lambda: True, body)
        elif kind == "retry":
            await loop.retry(body, 3, TICK)
        else:
            await loop.for_each("ab", body)
        return []

    env = await restate.serve(serving(work))
    key = str(uuid4())

    async def waiting() -> bool:
        return did.count("waits") == 1

    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        invocation_id = await ingress.send(go, key)
        await eventually(waiting, what="handler that waits")
        await admin.control_invocation(invocation_id, "cancel")

        async def failure() -> str | None:
            rows = await admin.query(
                f"select completion_failure from sys_invocation where id = {sql_text(invocation_id)} and "
                "status = 'completed'"
            )
            return rows[0]["completion_failure"] if rows else None

        assert "[409] cancelled" in await eventually(failure, what="end of the cancelled invocation")
    assert did.count("waits") == 1

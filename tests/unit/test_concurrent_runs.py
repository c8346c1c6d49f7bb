"""Runs beside each other, without an engine: their bounds, and how long an attempt of the invocation waits."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import restate

from perdure._runtime.concurrent_runs import GroupedRun, RunGroup

MOST = timedelta(seconds=30)


def joined(group: RunGroup, *bounds: int | None) -> list[GroupedRun]:
    return [group.join(restate.RunOptions(max_attempts=bound)) for bound in bounds]


@pytest.mark.parametrize(
    ("bounds", "together"), [((3, 1), 4), ((3, None), None), ((None, None), None), ((1, 2, 3), 6), ((0, 0), 0)]
)
def test_together_the_engine_lets_them_have_the_attempts_of_all(bounds, together):
    runs = joined(RunGroup("inv_1"), *bounds)
    assert all(run.is_concurrent for run in runs)
    assert [run.options.max_attempts for run in runs] == [together] * len(bounds)
    assert [run.max_attempts for run in runs] == list(bounds), "each keeps its own"


def test_a_run_after_one_whose_result_was_taken_is_alone():
    group = RunGroup("inv_2")
    (first,) = joined(group, 3)
    first.leave()
    (second,) = joined(group, 3)
    assert (first.is_concurrent, second.is_concurrent, second.options.max_attempts) == (False, False, 3)


async def test_a_failed_run_waits_for_those_that_are_being_done_and_asks_for_the_earliest_retry():
    patient, eager, busy = joined(RunGroup("inv_3"), 5, 5, 5)
    order: list[str] = []
    done = asyncio.Event()

    async def fails(run: GroupedRun, delay: timedelta) -> timedelta:
        async with run.attempt():
            pass
        run.fail()
        again = await run.wait_for_others(delay)
        order.append("again")
        return again

    async def succeeds() -> None:
        async with busy.attempt():
            await done.wait()
        order.append("ended")
        busy.finish()

    working = asyncio.create_task(succeeds())
    waiting = [asyncio.create_task(fails(patient, MOST)), asyncio.create_task(fails(eager, timedelta(seconds=2)))]
    for _ in range(10):
        await asyncio.sleep(0)
    assert order == []
    done.set()
    first, second = await asyncio.gather(*waiting)
    await working
    assert order == ["ended", "again", "again"]
    assert first <= timedelta(seconds=2)
    assert second <= timedelta(seconds=2)


async def test_no_run_begins_once_a_failure_ends_the_attempt_unless_the_engine_lets_it_go_on():
    fails, due = joined(RunGroup("inv_5"), 1, 1)
    has_result, began = False, asyncio.Event()
    fails.has_result = lambda: has_result

    async def begins() -> None:
        async with due.attempt():
            began.set()

    async with fails.attempt():
        pass
    fails.fail()
    await fails.wait_for_others(MOST)
    beginning = asyncio.create_task(begins())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(beginning), 0.2)
    assert not began.is_set(), "it would be cut off, and done again"
    has_result = True
    await asyncio.wait_for(beginning, 5)
    assert began.is_set()
    fails.finish()
    due.finish()


async def test_the_next_attempt_goes_on_counting_and_waits_until_it_is_due():
    delay = timedelta(milliseconds=30)
    clock = asyncio.get_running_loop()
    for number in (1, 2, 3):  # as the engine starts the invocation again and again
        run, _ = joined(RunGroup("inv_4"), 3, 3)
        before = clock.time()
        async with run.attempt():
            assert number == 1 or clock.time() - before >= 0.02
        assert run.fail() == number
        assert run.is_exhausted(number) == (number == 3)
        if number < 3:
            await run.wait_for_others(delay)
    run.finish()
    (anew, _) = joined(RunGroup("inv_4"), 3, 3)
    async with anew.attempt():
        pass
    assert anew.fail() == 1, "it had its result"
    anew.finish()

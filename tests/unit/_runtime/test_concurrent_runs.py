"""Attempts and waits of concurrent runs, without an engine."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import restate

from perdure._runtime.concurrent_runs import LOST_ATTEMPTS, GroupedRun, RunGroup
from tests.support import PATIENCE

MOST = timedelta(seconds=30)


def joined(group: RunGroup, *bounds: int | None) -> list[GroupedRun]:
    return [group.join("r", restate.RunOptions(max_attempts=bound)) for bound in bounds]


@pytest.mark.parametrize(
    ("bounds", "together"), [((3, 1), 4), ((3, None), None), ((None, None), None), ((1, 2, 3), 6), ((0, 0), 0)]
)
async def test_concurrent_runs_share_sum_of_attempts(bounds, together):
    runs = joined(RunGroup("inv_1"), *bounds)
    assert all(run.is_concurrent for run in runs)
    limit = None if together is None else together + LOST_ATTEMPTS
    assert [run.options.max_attempts for run in runs] == [limit] * len(bounds)
    assert [run.max_attempts for run in runs] == list(bounds), "each keeps its own"


async def test_finished_run_leaves_group():
    group = RunGroup("inv_2")
    (first,) = joined(group, 3)
    first.leave()
    (second,) = joined(group, 3)
    assert (first.is_concurrent, second.is_concurrent, second.options.max_attempts) == (False, False, 3 + LOST_ATTEMPTS)


async def test_failed_run_waits_for_running_actions():
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


async def test_no_action_starts_while_attempt_ends():
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
    assert not began.is_set(), "it would be interrupted and repeated"
    has_result = True
    await asyncio.wait_for(beginning, PATIENCE)
    assert began.is_set()
    fails.finish()
    due.finish()


async def test_next_attempt_continues_count_and_waits():
    delay = timedelta(milliseconds=30)
    clock = asyncio.get_running_loop()
    for number in (1, 2, 3):  # as repeated attempts of the invocation
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

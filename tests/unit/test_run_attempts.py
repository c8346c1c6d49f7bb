"""Runs beside each other, without an engine: their bounds, and how long an attempt of the invocation waits."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import restate
from hypothesis import given
from hypothesis import strategies as st

from perdure import RunConfig
from perdure._runtime.run_attempts import Companion, Company

MOST = timedelta(seconds=30)


def joined(company: Company, *bounds: int | None) -> list[Companion]:
    return [company.join(restate.RunOptions(max_attempts=bound)) for bound in bounds]


@pytest.mark.parametrize(
    ("bounds", "together"), [((3, 1), 4), ((3, None), None), ((None, None), None), ((1, 2, 3), 6), ((0, 0), 0)]
)
def test_together_the_engine_lets_them_have_the_attempts_of_all(bounds, together):
    runs = joined(Company("inv_1"), *bounds)
    assert all(run.accompanied for run in runs)
    assert [run.options.max_attempts for run in runs] == [together] * len(bounds)
    assert [run.bound for run in runs] == list(bounds), "each keeps its own"


def test_a_run_after_one_whose_result_was_taken_is_alone():
    company = Company("inv_2")
    (first,) = joined(company, 3)
    first.leave()
    (second,) = joined(company, 3)
    assert (first.accompanied, second.accompanied, second.options.max_attempts) == (False, False, 3)


async def test_a_failed_run_waits_for_those_that_are_being_done_and_asks_for_the_earliest_retry():
    patient, eager, busy = joined(Company("inv_3"), 5, 5, 5)
    order: list[str] = []
    done = asyncio.Event()

    async def fails(run: Companion, delay: timedelta) -> timedelta:
        async with run.attempt():
            pass
        run.failed()
        again = await run.wait_for_others(delay)
        order.append("again")
        return again

    async def succeeds() -> None:
        async with busy.attempt():
            await done.wait()
        order.append("ended")
        busy.ended()

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
    fails, due = joined(Company("inv_5"), 1, 1)
    has_result, began = False, asyncio.Event()
    fails.has_result = lambda: has_result

    async def begins() -> None:
        async with due.attempt():
            began.set()

    async with fails.attempt():
        pass
    fails.failed()
    await fails.wait_for_others(MOST)
    beginning = asyncio.create_task(begins())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(beginning), 0.2)
    assert not began.is_set(), "it would be cut off, and done again"
    has_result = True
    await asyncio.wait_for(beginning, 5)
    assert began.is_set()
    fails.ended()
    due.ended()


async def test_the_next_attempt_goes_on_counting_and_waits_until_it_is_due():
    delay = timedelta(milliseconds=30)
    clock = asyncio.get_running_loop()
    for number in (1, 2, 3):  # as the engine starts the invocation again and again
        run, _ = joined(Company("inv_4"), 3, 3)
        before = clock.time()
        async with run.attempt():
            assert number == 1 or clock.time() - before >= 0.02
        assert run.failed() == number
        assert run.spent(number) == (number == 3)
        if number < 3:
            await run.wait_for_others(delay)
    run.ended()
    (anew, _) = joined(Company("inv_4"), 3, 3)
    async with anew.attempt():
        pass
    assert anew.failed() == 1, "it had its result"
    anew.ended()


@given(st.integers(1, 5_000), st.floats(1, 1e6), st.integers(1, 30_000))
def test_the_wait_grows_from_the_first_to_the_longest(failures, factor, first):
    config = RunConfig(
        "work", initial_delay=timedelta(milliseconds=first), max_delay=MOST, backoff_factor=factor, max_retries=None
    )
    assert config.initial_delay <= config.delay_after(failures) <= config.delay_after(failures + 1) <= MOST

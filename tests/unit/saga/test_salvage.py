"""What a lost orchestration left behind: why its saga can't be taken back yet."""

from __future__ import annotations

from perdure.saga.recovery import LeftBehind


def test_a_lost_orchestration_that_left_nothing_running_can_be_taken_back():
    assert LeftBehind().explain() is None


def test_a_few_of_the_calls_that_still_run_are_named():
    left = LeftBehind(running={f"inv_{number}": "Flights/book" for number in range(5)}, ended={"inv_9": "Hotels/book"})
    named = "Flights/book (inv_0), Flights/book (inv_1), Flights/book (inv_2) and 2 more"
    assert left.explain() == (
        f"its calls still run, and were cancelled: {named}; it is rolled back as soon as they have ended"
    )


def test_what_failed_a_moment_ago_is_left_alone():
    why = LeftBehind(ended={"inv_9": "Hotels/book"}).explain()
    assert why is not None
    assert why.startswith("its calls failed a moment ago: Hotels/book (inv_9);")

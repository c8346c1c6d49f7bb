"""Recovery of orphaned sagas: calls that block a rollback."""

from __future__ import annotations

from perdure.saga.recovery import RemainingCalls


def test_no_remaining_calls_block_no_rollback():
    assert RemainingCalls().explain() is None


def test_name_few_of_running_calls():
    calls = RemainingCalls(
        running={f"inv_{number}": "Flights/book" for number in range(5)}, ended={"inv_9": "Hotels/book"}
    )
    named = "Flights/book (inv_0), Flights/book (inv_1), Flights/book (inv_2) and 2 more"
    assert calls.explain() == (
        f"its calls still run, and were cancelled: {named}; the rollback starts when they have ended"
    )


def test_wait_for_recently_failed_calls():
    why = RemainingCalls(ended={"inv_9": "Hotels/book"}).explain()
    assert why is not None
    assert why.startswith("its calls failed a moment ago: Hotels/book (inv_9);")

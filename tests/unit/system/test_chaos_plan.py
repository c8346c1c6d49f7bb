"""The plan of a chaos run: all of it follows from the seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.system.chaos.chaos import ORDERS, VICTIMS, make_plan

seeds = st.integers(min_value=0, max_value=2**32)


@given(seed=seeds, count=st.integers(min_value=1, max_value=400))
def test_the_same_seed_makes_the_same_plan(seed, count):
    assert make_plan(seed, count) == make_plan(seed, count)


@given(seed=seeds, count=st.integers(min_value=16, max_value=400))
def test_every_process_and_the_engine_is_killed_and_every_blow_hits_a_trip_that_was_sent(seed, count):
    plan = make_plan(seed, count)
    assert {blow.victim for blow in plan.blows if blow.act == "kill -9"} == set(VICTIMS)
    assert len(plan.orders) == count
    assert set(plan.orders) <= set(ORDERS)
    for blow in plan.blows:
        assert 1 <= blow.after <= count
        if blow.act != "kill -9":
            assert 1 <= int(blow.victim) <= blow.after
    assert [blow.after for blow in plan.blows] == sorted(blow.after for blow in plan.blows)


def test_another_seed_makes_another_plan():
    assert len({str(make_plan(seed, 100)) for seed in range(20)}) == 20

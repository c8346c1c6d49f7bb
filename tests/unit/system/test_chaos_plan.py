"""The plan of a chaos run: all of it follows from the seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.system.chaos.chaos import ORDERS, VICTIMS, make_plan

seeds = st.integers(min_value=0, max_value=2**32)


@given(seed=seeds, count=st.integers(min_value=1, max_value=400))
def test_same_seed_gives_same_plan(seed, count):
    assert make_plan(seed, count) == make_plan(seed, count)


@given(seed=seeds, count=st.integers(min_value=16, max_value=400))
def test_faults_cover_all_processes_and_sent_trips(seed, count):
    plan = make_plan(seed, count)
    assert {blow.victim for blow in plan.blows if blow.act == "kill -9"} == set(VICTIMS)
    assert len(plan.orders) == count
    assert set(plan.orders) <= set(ORDERS)
    for blow in plan.blows:
        assert 1 <= blow.after <= count
        if blow.act != "kill -9":
            assert 1 <= int(blow.victim) <= blow.after
    assert [blow.after for blow in plan.blows] == sorted(blow.after for blow in plan.blows)


def test_other_seed_gives_other_plan():
    assert len({str(make_plan(seed, 100)) for seed in range(20)}) == 20

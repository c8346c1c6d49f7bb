"""Plans of chaos runs depend on the seed alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.system.chaos.chaos import ORDERS, PROCESSES, make_plan

seeds = st.integers(min_value=0, max_value=2**32)


@given(seed=seeds, count=st.integers(min_value=1, max_value=400))
def test_same_seed_gives_same_plan(seed, count):
    assert make_plan(seed, count) == make_plan(seed, count)


@given(seed=seeds, count=st.integers(min_value=16, max_value=400))
def test_faults_cover_all_processes_and_sent_trips(seed, count):
    plan = make_plan(seed, count)
    assert {fault.target for fault in plan.faults if fault.action == "kill -9"} == set(PROCESSES)
    assert len(plan.orders) == count
    assert set(plan.orders) <= set(ORDERS)
    for fault in plan.faults:
        assert 1 <= fault.after <= count
        if fault.action != "kill -9":
            assert 1 <= int(fault.target) <= fault.after
    assert [fault.after for fault in plan.faults] == sorted(fault.after for fault in plan.faults)


def test_other_seed_gives_other_plan():
    assert len({str(make_plan(seed, 100)) for seed in range(20)}) == 20

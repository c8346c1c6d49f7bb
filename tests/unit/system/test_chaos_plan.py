"""Plans of chaos runs depend on the seed alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.system.chaos.plan import (
    LONG_STOP_SECONDS,
    OPERATOR_ACTIONS,
    ORDERS,
    SUPERVISOR,
    TARGETS,
    Ability,
    FaultKind,
    make_plan,
)

seeds = st.integers(min_value=0, max_value=2**32)
abilities = st.sets(st.sampled_from(Ability))


@given(seed=seeds, count=st.integers(min_value=1, max_value=600))
def test_same_seed_gives_same_plan(seed, count):
    assert make_plan(seed, count) == make_plan(seed, count)


def test_other_seed_gives_other_plan():
    assert len({str(make_plan(seed, 100)) for seed in range(20)}) == 20


@given(seed=seeds, count=st.integers(min_value=1, max_value=2000))
def test_faults_hit_known_targets_and_sent_trips(seed, count):
    plan = make_plan(seed, count)
    assert len(plan.orders) == len(plan.clients) == count
    assert set(plan.orders) <= set(ORDERS)
    assert [fault.after for fault in plan.faults] == sorted(fault.after for fault in plan.faults)
    for fault in plan.faults:
        assert 1 <= fault.after <= count
        if fault.kind in OPERATOR_ACTIONS:
            assert 1 <= int(fault.target) <= fault.after
        else:
            assert fault.target in (*TARGETS[fault.kind], SUPERVISOR)


@given(seed=seeds, count=st.integers(min_value=20, max_value=2000))
def test_each_round_has_every_kind(seed, count):
    plan = make_plan(seed, count)
    rounds = max(1, round(count / 500))
    for kind in TARGETS:
        found = [fault for fault in plan.faults if fault.kind is kind and fault.target != SUPERVISOR]
        wanted = 0 if kind is FaultKind.LONG_STOP and count < 300 else rounds
        assert len(found) == (3 * rounds if kind is FaultKind.KILL else wanted)
        targets = [fault.target for fault in found]
        uses = [targets.count(target) for target in TARGETS[kind]]
        assert max(uses) - min(uses) <= 1, "a target had a second turn before another one's first"
    assert sum(fault.target == SUPERVISOR for fault in plan.faults) == rounds


@given(seed=seeds, count=st.integers(min_value=20, max_value=2000))
def test_pace_leaves_trips_between_faults(seed, count):
    plan = make_plan(seed, count)
    disruptions = [fault for fault in plan.faults if fault.kind not in OPERATOR_ACTIONS]
    assert plan.pace * count == pytest.approx(4 * len(disruptions))
    assert len({fault.after for fault in disruptions}) == len(disruptions)
    assert all(fault.seconds <= LONG_STOP_SECONDS for fault in plan.faults)


@given(seed=seeds, count=st.integers(min_value=1, max_value=600), missing=abilities)
def test_missing_ability_removes_only_its_faults(seed, count, missing):
    plan = make_plan(seed, count)
    possible = plan.without(missing)
    assert list(possible.faults) == [fault for fault in plan.faults if not fault.needs & missing]
    assert (possible.orders, possible.clients, possible.pace) == (plan.orders, plan.clients, plan.pace)

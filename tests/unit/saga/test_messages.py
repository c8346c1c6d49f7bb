"""IDs and messages of rollbacks."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.saga.messages import ExecutionStatus, RollbackStatus, StepStatus
from perdure.saga.schema import execution_id, letter_id, saga_of
from perdure.saga.status import CompensationState, RollbackState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.text(), st.text("0123456789abcdef", min_size=1))
def test_execution_id_contains_its_saga(saga_id, token):
    assert saga_of(execution_id(saga_id, token)) == saga_id


def execution(number: int, positions: int) -> ExecutionStatus:
    steps = [
        StepStatus(
            position=position,
            step=f"{number}/{position}",
            compensation=None,
            payload=None,
            state=CompensationState.UNDONE,
            completed=None,
            attempts=0,
            redriven=0,
            error=None,
            invocation_id=None,
        )
        for position in range(1, positions + 1)
    ]
    return ExecutionStatus(
        saga_id="s",
        execution=f"s@{number}",
        number=number,
        service="S",
        status=RollbackState.ROLLED_BACK,
        strategy="compensate-all",
        reason="r",
        started_at=NOW,
        updated_at=NOW,
        steps=steps,
    )


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_letter_id_names_one_step(sizes):
    *earlier, last = [execution(number, size) for number, size in enumerate(sizes, start=1)]
    rollback = RollbackStatus(**dict(last), earlier=earlier)
    letters = [each.letter_id(step.position) for each in rollback.executions for step in each.steps]
    assert len(set(letters)) == len(letters)
    for each in rollback.executions:
        for step in each.steps:
            assert rollback.step_of(each.letter_id(step.position)) == (each, step)


@pytest.mark.parametrize("letter", ["s", "s/", "s/2", "s/2.1", "s/1.1", "t/1"])
def test_unknown_letter_names_no_step(letter):
    rollback = RollbackStatus(**dict(execution(1, 1)))
    assert rollback.step_of(letter) is None


def test_first_execution_has_short_letter_ids():
    assert (letter_id("trip-1", 1, 3), letter_id("trip-1", 2, 3)) == ("trip-1/3", "trip-1/2.3")

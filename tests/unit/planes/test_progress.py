"""A status is what the recorded facts add up to."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import SagaPhase
from perdure.saga.messages import RollbackStatus
from perdure.saga.progress import describe, describe_rollback
from perdure.saga.schema import ClosedSaga
from perdure.saga.status import RollbackState

STEPS = ["flight", "hotel", "payment"]


def test_before_the_first_step():
    status = describe([], None, None, 3)
    assert (status.phase, status.progress, status.current_step) == ("not_started", 0.0, None)
    assert (status.completed_steps, status.is_complete, status.error) == ([], False, None)


def test_a_recorded_step_is_the_current_one_and_those_before_it_are_done():
    status = describe(STEPS[:2], None, None, 4)
    assert (status.phase, status.current_step, status.completed_steps) == ("running", "hotel", ["flight"])
    assert status.progress == 0.25


def test_completed():
    status = describe(STEPS, ClosedSaga(phase=SagaPhase.COMPLETED), None, 3)
    assert (status.phase, status.progress, status.current_step) == ("completed", 1.0, None)
    assert (status.completed_steps, status.is_complete) == (STEPS, True)


def test_completed_without_any_step():
    status = describe([], ClosedSaga(phase=SagaPhase.COMPLETED), None, None)
    assert (status.progress, status.current_step, status.completed_steps) == (1.0, None, [])


def test_while_it_is_rolled_back():
    status = describe(STEPS[:2], None, "no room", 3)
    assert (status.phase, status.error, status.is_complete) == ("compensating", "no room", False)
    assert (status.current_step, status.completed_steps) == ("hotel", ["flight"])


@pytest.mark.parametrize("phase", [phase for phase in SagaPhase if phase is not SagaPhase.COMPLETED])
def test_ended_otherwise(phase):
    status = describe(STEPS[:2], ClosedSaga(phase=phase, error="no room"), "what came first", 3)
    assert (status.phase, status.error, status.is_complete) == (phase.value, "no room", True)
    assert (status.current_step, status.completed_steps) == ("hotel", ["flight"])
    assert status.progress < 1.0


def test_without_a_number_of_steps_progress_is_nothing_or_all():
    assert describe(STEPS, None, None, None).progress == 0.0
    assert describe(STEPS, ClosedSaga(phase=SagaPhase.COMPLETED), None, None).progress == 1.0


@given(
    steps=st.lists(st.text(min_size=1), max_size=6, unique=True),
    expected=st.none() | st.integers(0, 8),
    phase=st.none() | st.sampled_from(SagaPhase),
    failed=st.none() | st.text(),
)
def test_progress_is_from_0_to_1_and_never_goes_back(steps, expected, phase, failed):
    closed = None if phase is None else ClosedSaga(phase=phase)
    status = describe(steps, closed, failed, expected)
    assert 0.0 <= status.progress <= 1.0
    assert describe([*steps, "one more"], closed, failed, expected).progress >= status.progress
    assert status.is_complete is (phase is not None)


def rollback(status: RollbackState) -> RollbackStatus:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return RollbackStatus(
        saga_id="s",
        service="S",
        status=status,
        strategy="compensate-all",
        reason="killed",
        started_at=at,
        updated_at=at,
        steps=[],
    )


@pytest.mark.parametrize(
    ("outcome", "phase"),
    [
        (RollbackState.RUNNING, "compensating"),
        (RollbackState.ROLLED_BACK, "rolled_back"),
        (RollbackState.NEEDS_ATTENTION, "needs_attention"),
    ],
)
def test_a_killed_orchestration_shows_how_its_rollback_stands(outcome, phase):
    status = describe_rollback(describe(STEPS[:2], None, None, 3), rollback(outcome))
    assert (status.phase, status.error) == (phase, "killed")
    assert status.is_complete is (outcome is not RollbackState.RUNNING)
    assert status.metadata["rollback"] == outcome.value


def test_a_running_orchestration_without_a_rollback_runs():
    running = describe(STEPS[:2], None, None, 3)
    assert describe_rollback(running, None) == running


def test_dead_letters_that_were_dealt_with_since_show():
    closed = ClosedSaga(phase=SagaPhase.NEEDS_ATTENTION, error="no room", rolls_back=True)
    status = describe_rollback(describe(STEPS, closed, None, 3), rollback(RollbackState.ROLLED_BACK))
    assert (status.phase, status.error, status.is_complete) == ("rolled_back", "no room", True)


@pytest.mark.parametrize("outcome", list(RollbackState))
def test_cancelled_stays_cancelled(outcome):
    closed = ClosedSaga(phase=SagaPhase.CANCELLED, error="cancelled", rolls_back=True)
    status = describe_rollback(describe(STEPS, closed, None, 3), rollback(outcome))
    assert (status.phase, status.metadata["rollback"]) == ("cancelled", outcome.value)
    assert describe_rollback(describe(STEPS, closed, None, 3), None).metadata["rollback"] == "pending"

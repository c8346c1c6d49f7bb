"""Status derived from the record of an orchestration."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.saga.messages import ExecutionStatus, StepStatus
from perdure.saga.progress import add_rollback, status_of_record
from perdure.saga.schema import ClosedSaga
from perdure.saga.status import RollbackState, SagaPhase

STEPS = ["flight", "hotel", "payment"]


def test_workflow_without_record_is_not_started():
    status = status_of_record([], None, None, 3)
    assert (status.phase, status.progress, status.current_step) == ("not_started", 0.0, None)
    assert (status.completed_steps, status.is_complete, status.error) == ([], False, None)


def test_last_recorded_step_is_current():
    status = status_of_record(STEPS[:2], None, None, 4)
    assert (status.phase, status.current_step, status.completed_steps) == ("running", "hotel", ["flight"])
    assert status.progress == 0.25


def test_completed_workflow_has_full_progress():
    status = status_of_record(STEPS, ClosedSaga(phase=SagaPhase.COMPLETED), None, 3)
    assert (status.phase, status.progress, status.current_step) == ("completed", 1.0, None)
    assert (status.completed_steps, status.is_complete) == (STEPS, True)


def test_completed_without_steps():
    status = status_of_record([], ClosedSaga(phase=SagaPhase.COMPLETED), None, None)
    assert (status.progress, status.current_step, status.completed_steps) == (1.0, None, [])


def test_failed_workflow_is_compensating():
    status = status_of_record(STEPS[:2], None, "no room", 3)
    assert (status.phase, status.error, status.is_complete) == ("compensating", "no room", False)
    assert (status.current_step, status.completed_steps) == ("hotel", ["flight"])


ENDED = (SagaPhase.ROLLED_BACK, SagaPhase.NEEDS_ATTENTION, SagaPhase.FAILED, SagaPhase.CANCELLED)


@pytest.mark.parametrize("phase", [*ENDED, SagaPhase.COMPENSATING])
def test_failed_orchestration_is_complete_after_rollback(phase):
    status = status_of_record(STEPS[:2], ClosedSaga(phase=phase, error="no room"), "an earlier error", 3)
    is_complete = phase is not SagaPhase.COMPENSATING
    assert (status.phase, status.error, status.is_complete) == (phase.value, "no room", is_complete)
    assert (status.current_step, status.completed_steps) == ("hotel", ["flight"])
    assert status.progress < 1.0


def test_progress_without_expected_steps_is_0_or_1():
    assert status_of_record(STEPS, None, None, None).progress == 0.0
    assert status_of_record(STEPS, ClosedSaga(phase=SagaPhase.COMPLETED), None, None).progress == 1.0


@given(
    steps=st.lists(st.text(min_size=1), max_size=6, unique=True),
    expected=st.none() | st.integers(0, 8),
    phase=st.none() | st.sampled_from((*ENDED, SagaPhase.COMPLETED)),
    failed=st.none() | st.text(),
)
def test_progress_never_decreases(steps, expected, phase, failed):
    closed = None if phase is None else ClosedSaga(phase=phase)
    status = status_of_record(steps, closed, failed, expected)
    assert 0.0 <= status.progress <= 1.0
    assert status_of_record([*steps, "one more"], closed, failed, expected).progress >= status.progress
    assert status.is_complete is (phase is not None)


def rollback(status: RollbackState) -> ExecutionStatus:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return ExecutionStatus(
        saga_id="s",
        execution="s@1",
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
def test_killed_orchestration_shows_its_rollback(outcome, phase):
    status = add_rollback(status_of_record(STEPS[:2], None, None, 3), rollback(outcome))
    assert (status.phase, status.error) == (phase, "killed")
    assert status.is_complete is (outcome is not RollbackState.RUNNING)
    assert status.metadata["rollback"] == outcome.value


@pytest.mark.parametrize(
    ("outcome", "is_complete"), [(RollbackState.RUNNING, False), (RollbackState.ROLLED_BACK, True)]
)
def test_early_end_follows_its_rollback(outcome, is_complete):
    closed = ClosedSaga(phase=SagaPhase.COMPENSATING, error="no room")
    status = add_rollback(status_of_record(STEPS, closed, "no room", 3), rollback(outcome))
    assert (status.error, status.is_complete, status.metadata["rollback"]) == ("no room", is_complete, outcome.value)


def test_metadata_shows_retried_compensations():
    due = datetime(2026, 1, 1, 12, tzinfo=UTC)
    facts = {"completed": True, "payload": {}, "redriven": 0, "invocation_id": None, "state": "pending"}
    steps = [
        StepStatus(position=1, step="flight", compensation="T/a", attempts=0, error=None, **facts),
        StepStatus(
            position=2, step="hotel", compensation="T/b", attempts=3, error="down", next_attempt_at=due, **facts
        ),
    ]
    running = rollback(RollbackState.RUNNING).model_copy(update={"steps": steps})
    status = add_rollback(status_of_record(STEPS, None, "no room", 3), running)
    assert status.metadata["retried_compensations"] == {
        "hotel": {"failed_attempts": 3, "error": "down", "next_attempt_at": "2026-01-01T12:00:00+00:00"}
    }


def test_running_orchestration_without_rollback_is_unchanged():
    running = status_of_record(STEPS[:2], None, None, 3)
    assert add_rollback(running, None) == running


def test_resolved_dead_letters_change_the_phase():
    closed = ClosedSaga(phase=SagaPhase.NEEDS_ATTENTION, error="no room")
    status = add_rollback(status_of_record(STEPS, closed, None, 3), rollback(RollbackState.ROLLED_BACK))
    assert (status.phase, status.error, status.is_complete) == ("rolled_back", "no room", True)


@pytest.mark.parametrize("outcome", list(RollbackState))
def test_cancelled_phase_is_final(outcome):
    closed = ClosedSaga(phase=SagaPhase.CANCELLED, error="cancelled")
    status = add_rollback(status_of_record(STEPS, closed, None, 3), rollback(outcome))
    assert (status.phase, status.metadata["rollback"]) == ("cancelled", outcome.value)
    assert add_rollback(status_of_record(STEPS, closed, None, 3), None).metadata["rollback"] == "pending"

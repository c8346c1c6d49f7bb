"""Changes between two statuses of a workflow."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from perdure.status import ChangeKind, StatusChange, StatusData, status_changes

names = st.sampled_from(["flight", "hotel", "payment"])
statuses = st.builds(
    StatusData,
    phase=st.sampled_from(["running", "completed"]),
    progress=st.sampled_from([0.0, 0.5, 1.0]),
    current_step=st.none() | names,
    completed_steps=st.lists(names, max_size=4),
    is_complete=st.booleans(),
    error=st.none() | st.just("no seats"),
    metadata=st.dictionaries(names, st.integers(0, 2), max_size=2),
    updated_at=st.none() | st.just(datetime(2026, 11, 24, tzinfo=UTC)),
)


def told(changes: list[StatusChange]) -> list[tuple[str, object]]:
    return [(change.kind.value, change.value) for change in changes]


def test_report_changes_of_whole_workflow():
    first = StatusData(phase="running", current_step="flight")
    second = StatusData(
        phase="running", progress=0.5, current_step="hotel", completed_steps=["flight"], metadata={"seats": 2}
    )
    last = StatusData(phase="completed", progress=1, completed_steps=["flight", "hotel"], is_complete=True)
    assert told(status_changes(None, first)) == [("phase", "running"), ("step", "flight")]
    assert told(status_changes(first, second)) == [
        ("step_completed", "flight"),
        ("step", "hotel"),
        ("progress", 0.5),
        ("metadata", {"seats": 2}),
    ]
    assert told(status_changes(second, last)) == [
        ("phase", "completed"),
        ("step_completed", "hotel"),
        ("step", None),
        ("progress", 1),
        ("completed", True),
    ]


def test_report_failure_with_error():
    running = StatusData(phase="running")
    failed = StatusData(phase="failed", error="no seats", is_complete=True)
    assert told(status_changes(running, failed)) == [("phase", "failed"), ("failed", "no seats"), ("completed", False)]


def test_report_repeated_step_twice():
    once = StatusData(phase="running", completed_steps=["poll"])
    twice = StatusData(phase="running", completed_steps=["poll", "poll"])
    assert told(status_changes(once, twice)) == [("step_completed", "poll")]


@given(statuses)
def test_ignore_change_of_time_alone(status):
    later = status.model_copy(update={"updated_at": datetime(2030, 1, 1, tzinfo=UTC)})
    assert status_changes(status, later) == []


@given(statuses, statuses)
def test_report_each_kind_once_except_steps(before, after):
    kinds = [change.kind for change in status_changes(before, after)]
    others = [kind for kind in kinds if kind is not ChangeKind.STEP_COMPLETED]
    assert len(others) == len(set(others))
    assert (ChangeKind.PHASE in kinds) == (before.phase != after.phase)
    assert (ChangeKind.PROGRESS in kinds) == (before.progress != after.progress)

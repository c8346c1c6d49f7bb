"""Lines about failing invocations: each failure once, with what to do."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perdure.dev.failures import FailureLines


def row(attempts: int = 1, error: str = "no stock", *, code: str = "") -> dict[str, Any]:
    return {
        "id": "inv_1",
        "target": "Stock/take",
        "retry_count": attempts,
        "last_failure": f"[500 Internal] {error}\nTraceback ...",
        "last_failure_error_code": code,
    }


def test_describe_target_attempt_and_error():
    lines = FailureLines()
    assert list(lines.retried([row(2)])) == ["Stock/take fails (attempt 2): no stock"]
    step = {"last_failure_related_command_name": "insert"}
    assert list(lines.retried([row(3, "no row") | step])) == ["Stock/take fails in 'insert' (attempt 3): no row"]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200))
def test_repeat_equal_failures_rarely(steps):
    lines, attempts, shown = FailureLines(), 0, []
    for step in steps:
        attempts += step
        if list(lines.retried([row(attempts)])):
            shown.append(attempts)
    assert shown[0] == steps[0]
    assert all(later >= 4 * earlier for earlier, later in pairwise(shown))


def test_report_new_error_and_new_failure_after_success():
    lines = FailureLines()
    assert len(list(lines.retried([row(5)]))) == 1
    assert list(lines.retried([row(6)])) == []
    assert len(list(lines.retried([row(6, "no shelf")]))) == 1
    assert list(lines.retried([])) == []
    assert len(list(lines.retried([row(1, "no shelf")]))) == 1


def test_journal_mismatch_says_what_to_do():
    (line,) = FailureLines().retried([row(1, "Found a mismatch: secret != value", code="RT0016")])
    assert "journal mismatch" in line
    assert line.endswith("perdure invocations kill inv_1")
    assert "secret" not in line


def test_unreachable_processes_are_left_to_supervisor():
    assert list(FailureLines().retried([row(1, code="RT0010")])) == []


def test_report_pause_once_with_reason():
    lines, paused = FailureLines(), [{"id": "inv_1", "target": "Stock/take"}]
    assert lines.is_new_pause("inv_1")
    (line,) = lines.paused(paused, {"inv_1": "no stock"})
    assert "is paused, its retries are used up: no stock. Fix the cause, then: perdure invocations resume inv_1" in line
    assert not lines.is_new_pause("inv_1")
    assert list(lines.paused(paused, {})) == []
    assert list(lines.paused([], {})) == []
    assert len(list(lines.paused(paused, {}))) == 1


def test_report_each_ended_invocation_once():
    lines = FailureLines()
    ended = [{"id": f"inv_{n}", "target": "Orders/a/run", "completion_failure": "[422] refused"} for n in range(3)]
    assert list(lines.ended(ended[:2])) == ["Orders/a/run failed: refused"] * 2
    assert list(lines.ended(ended)) == ["Orders/a/run failed: refused"]

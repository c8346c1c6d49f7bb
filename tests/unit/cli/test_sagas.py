"""Terminal output of `perdure sagas`."""

from __future__ import annotations

from datetime import UTC, datetime

from perdure.cli.sagas import print_timeline
from perdure.saga.timeline import RetriedInvocation, Timeline, TimelineStep

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_show_error_and_next_attempt(capsys):
    step = TimelineStep(
        position=1, step="hotel", undo="pending", compensation_attempts=3, error="[down]", next_attempt_at=AT
    )
    call = RetriedInvocation(id="inv_1", target="Flights/cancel", attempts=7, error="no route", next_attempt_at=AT)
    print_timeline(
        Timeline(saga_id="t", service="Trips", key="t", status="running", started_at=AT, steps=[step], retried=[call])
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "pending (3 attempts)" in shown
    assert "Compensation of hotel failed: [down]. Next attempt at 2026-11-24 12:00:00 UTC" in shown
    assert "Flights/cancel fails (7 attempts): no route. Next attempt at 2026-11-24 12:00:00 UTC. Fix the" in shown

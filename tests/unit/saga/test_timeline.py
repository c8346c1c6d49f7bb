"""Attribution of journal entries to the steps of a timeline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from perdure._wake_ups import WAIT_RUN_PREFIX
from perdure.saga.schema import StepRecord, step_key
from perdure.saga.timeline import JournalEntry, build_steps

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)


def at(seconds: int) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def test_waiting_step_has_no_action():
    records = [
        StepRecord(position=position, step=name, step_id=f"t/{position}")
        for position, name in ((1, "approval"), (2, "charge"))
    ]
    journal = [
        JournalEntry(kind="recorded", at=at(1), state=step_key(1)),
        JournalEntry(kind="started", at=at(1), action=("run", f"{WAIT_RUN_PREFIX}approval"), completion=1),
        JournalEntry(kind="ended", at=at(2), completion=1),
        JournalEntry(kind="started", at=at(2), action=("call", "Approvals/open"), completion=2),
        JournalEntry(kind="ended", at=at(3), completion=2),
        JournalEntry(kind="started", at=at(9), action=("call", "Approvals/listen"), completion=3),
        JournalEntry(kind="ended", at=at(9), completion=3),
    ]
    (approval, _) = build_steps(records, journal, None)
    assert (approval.action, approval.started_at, approval.ended_at, approval.result) == ("wait", at(1), None, None)
    journal += [
        JournalEntry(kind="recorded", at=at(10), state=step_key(2)),
        JournalEntry(kind="started", at=at(10), action=("call", "Payments/charge"), completion=4),
        JournalEntry(kind="ended", at=at(11), completion=4),
    ]
    approval, charge = build_steps(records, journal, None)
    assert (approval.action, charge.action, charge.result) == ("wait", "Payments/charge", "success")

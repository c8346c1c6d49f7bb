"""State keys and stored records of schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pydantic import Field

from perdure._runtime.records import StoredRecord
from perdure.schedules.messages import ScheduleCounts, ScheduledRun

SPEC_KEY: Final = "spec"
"""`ScheduleSpec` of an existing schedule."""
PROGRESS_KEY: Final = "progress"
"""`ScheduleProgress` of an existing schedule."""
SEQUENCE_KEY: Final = "sequence"
"""`ScheduleSequence`, which outlives the schedule."""
AUDIT_LOG_KEY: Final = "audit_log"
"""List of `ScheduleAuditEntry`, latest first; outlives the schedule."""
NONCES_KEY: Final = "nonces"
"""Nonces of signed actions, which outlive the schedule."""
INDEX_PREFIX: Final = "schedule/"
"""Prefix of the index entries, followed by the schedule's name."""


class ScheduleSequence(StoredRecord):
    """Counters that outlive the schedule, so that neither a firing nor an idempotency key is repeated."""

    generation: int = 0
    actions: int = 0


class ScheduleProgress(StoredRecord):
    """Next firing and runs of a schedule; intervals count from ``anchor``."""

    anchor: datetime
    created_at: datetime
    updated_at: datetime
    paused: bool = False
    next_at: datetime | None = None
    counts: ScheduleCounts = ScheduleCounts()
    last_error: str | None = None
    active: list[ScheduledRun] = Field(default_factory=list)
    recent: list[ScheduledRun] = Field(default_factory=list)

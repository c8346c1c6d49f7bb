"""Status vocabulary of sagas: the phase of a saga, the state of its rollback, the state of one compensation."""

from __future__ import annotations

from enum import StrEnum


class SagaPhase(StrEnum):
    """Phase of a saga, including its rollback.

    An orchestration reports all phases but ``PAUSED`` and ``ORPHANED``, which only the engine's tables show.
    """

    NOT_STARTED = "not_started"
    RUNNING = "running"
    PAUSED = "paused"
    COMPENSATING = "compensating"
    NEEDS_ATTENTION = "needs_attention"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"
    FAILED = "failed"
    ORPHANED = "orphaned"
    COMPLETED = "completed"


class RollbackState(StrEnum):
    """State of a rollback.

    ``FINISHED_FORWARD``: the saga failed past its pivot and an operator completed it instead.
    """

    RUNNING = "running"
    ROLLED_BACK = "rolled_back"
    FINISHED_FORWARD = "finished_forward"
    NEEDS_ATTENTION = "needs_attention"


class CompensationState(StrEnum):
    """State of the compensation of one step."""

    PENDING = "pending"
    UNDONE = "undone"
    SKIPPED = "skipped"
    FAILED = "failed"
    DEAD_LETTER = "dead_letter"
    RESOLVED = "resolved"
    DISCARDED = "discarded"

"""Messages of the sagas API."""

from __future__ import annotations

from pydantic import BaseModel

from perdure import StatusData
from perdure.saga.queries import SagaRow
from perdure.saga.status import SagaPhase
from perdure.saga.timeline import Timeline


class SagaPage(BaseModel):
    """A page of sagas, newest first; `services` are all services that have sagas."""

    items: list[SagaRow]
    total: int
    page: int
    pages: int
    services: list[str]


class Saga(BaseModel):
    """A saga.

    Args:
        status: The status from its service, or from `perdure.update_status` for a workflow without steps.
        timeline: Its steps, from the engine's journal.
    """

    status: StatusData | None
    timeline: Timeline

    @property
    def phase(self) -> str:
        """The phase."""
        if self.status is not None and self.status.phase != SagaPhase.NOT_STARTED:
            if self._is_orphaned:
                return SagaPhase.ORPHANED
            return "paused" if self.timeline.status == "paused" else self.status.phase
        if self.timeline.rollback is not None:
            return self.timeline.rollback.status.value
        return {"success": "completed", "failure": "failed"}.get(self.timeline.result or "", self.timeline.status)

    @property
    def is_final(self) -> bool:
        """Whether it changes only by operator actions."""
        rollback = self.timeline.rollback
        if self.timeline.ended_at is None or self._is_orphaned:
            return False
        return rollback is None or rollback.status != "running"

    @property
    def _is_orphaned(self) -> bool:
        """Whether its orchestrator failed without a rollback, which the reconciler will start."""
        has_failed = self.timeline.ended_at is not None and self.timeline.result == "failure"
        is_running = self.status is not None and self.status.phase == SagaPhase.RUNNING
        return has_failed and is_running and self.timeline.rollback is None and bool(self.timeline.steps)

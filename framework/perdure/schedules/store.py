"""Persistence of a schedule's state."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from perdure._runtime.serdes import serde_for
from perdure._runtime.time_scale import scaled
from perdure.errors import NotFound
from perdure.observability.logging import get_logger
from perdure.schedules.messages import (
    Firing,
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleAuditEntry,
    ScheduleState,
    ScheduleStatus,
    fire_target,
)
from perdure.schedules.recurrence import ScheduleSpec
from perdure.schedules.schema import (
    AUDIT_LOG_KEY,
    PROGRESS_KEY,
    SEQUENCE_KEY,
    SPEC_KEY,
    ScheduleProgress,
    ScheduleSequence,
)
from perdure.state import State

MAX_AUDIT_ENTRIES: Final = 50

_firing_serde = serde_for(Firing)

log = get_logger("perdure.schedule")


class StoredSchedule:
    """State of one schedule, loaded at the start of a handler and saved at its end."""

    def __init__(
        self, ctx: Any, spec: ScheduleSpec | None, progress: ScheduleProgress | None, sequence: ScheduleSequence
    ) -> None:
        self.ctx = ctx
        self.name: str = ctx.key()
        self.sequence = sequence
        self._spec = spec
        self._progress = progress

    @classmethod
    async def load(cls, ctx: Any) -> StoredSchedule:
        """Load the state, which is empty if the schedule does not exist."""
        spec = await State(ctx, SPEC_KEY, ScheduleSpec).get()
        progress = await State(ctx, PROGRESS_KEY, ScheduleProgress).get()
        sequence = await State(ctx, SEQUENCE_KEY, ScheduleSequence, default_factory=ScheduleSequence).get()
        return cls(ctx, spec, progress, sequence)

    @property
    def exists(self) -> bool:
        """Whether the schedule exists."""
        return self._spec is not None and self._progress is not None

    @property
    def spec(self) -> ScheduleSpec:
        """The specification; raises NotFound if the schedule does not exist."""
        if self._spec is None:
            raise self._not_found()
        return self._spec

    @property
    def progress(self) -> ScheduleProgress:
        """The progress; raises NotFound if the schedule does not exist."""
        if self._progress is None:
            raise self._not_found()
        return self._progress

    def _not_found(self) -> NotFound:
        return NotFound(
            f"schedule '{self.name}' does not exist; ScheduleIndex/list lists all schedules", metadata={"field": "name"}
        )

    async def save(self, spec: ScheduleSpec, progress: ScheduleProgress) -> None:
        """Save the specification, if it changed, and the progress."""
        if spec != self._spec:
            await State(self.ctx, SPEC_KEY, ScheduleSpec).set(spec)
        self._spec, self._progress = spec, progress
        await State(self.ctx, PROGRESS_KEY, ScheduleProgress).set(progress)

    async def delete(self) -> None:
        """Delete the schedule, except for its sequence, audit log and nonces."""
        await State(self.ctx, SPEC_KEY, ScheduleSpec).clear()
        await State(self.ctx, PROGRESS_KEY, ScheduleProgress).clear()

    async def start_generation(self) -> None:
        """Invalidate the firings that are scheduled already."""
        await self._save_sequence(generation=self.sequence.generation + 1)

    async def append_audit_entry(self, action: ScheduleAction, request: ScheduleActionRequest, now: datetime) -> None:
        """Append an action to the audit log."""
        number = self.sequence.actions + 1
        await self._save_sequence(actions=number)
        entry = ScheduleAuditEntry(
            number=number,
            at=now,
            actor=request.actor,
            action=action,
            reason=request.reason,
            signed_action=request.signed_action,
        )
        audit_log = _audit_log(self.ctx)
        await audit_log.set([entry, *await audit_log.get()][:MAX_AUDIT_ENTRIES])
        log.info("schedule.action", schedule=self.name, action=action, actor=request.actor, reason=request.reason)

    def send_next_firing(self, now: datetime) -> None:
        """Send the next firing with a delay; under a time scale it arrives early and counts as on time."""
        if (planned := self.progress.next_at) is not None:
            firing = Firing(generation=self.sequence.generation, planned=planned)
            self.ctx.generic_send(
                fire_target.service,
                fire_target.handler,
                _firing_serde.serialize(firing),
                key=self.name,
                send_delay=scaled(max(planned - now, timedelta(0))),  # the SDK refuses negative delays
            )

    async def status(self) -> ScheduleStatus:
        """Return the status of the schedule."""
        progress, spec = self.progress, self.spec
        state = ScheduleState.PAUSED if progress.paused else ScheduleState.ACTIVE
        if state is ScheduleState.ACTIVE and progress.next_at is None:
            state = ScheduleState.FINISHED
        return ScheduleStatus(
            name=self.name,
            state=state,
            spec=spec,
            generation=self.sequence.generation,
            audit_log=await _audit_log(self.ctx).get(),
            **progress.model_dump(exclude={"anchor", "paused"}),
        )

    async def _save_sequence(self, **changes: int) -> None:
        self.sequence = self.sequence.model_copy(update=changes)
        await State(self.ctx, SEQUENCE_KEY, ScheduleSequence).set(self.sequence)


def _audit_log(ctx: Any) -> State[list[ScheduleAuditEntry], list[ScheduleAuditEntry]]:
    return State(ctx, AUDIT_LOG_KEY, list[ScheduleAuditEntry], default_factory=list)

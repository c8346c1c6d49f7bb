"""What a schedule keeps: read at the start of a handler, and written at its end."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from perdure._runtime.serdes import serde_for
from perdure._runtime.time_scale import scaled
from perdure.errors import NotFound
from perdure.observability.logging import get_logger
from perdure.schedules.messages import (
    Firing,
    ScheduleAction,
    ScheduleAuditEntry,
    ScheduleCounts,
    ScheduledRun,
    ScheduleState,
    ScheduleStatus,
    fire_target,
)
from perdure.schedules.recurrence import ScheduleSpec
from perdure.schedules.signatures import Admitted
from perdure.state import State

AUDIT_LOG: Final = 50
"""How many acts are kept."""

_firing_serde = serde_for(Firing)

log = get_logger("perdure.schedule")


class Past(BaseModel):
    """What outlives a removal, so that neither a firing nor an idempotency key ever comes twice."""

    generation: int = 0
    acts: int = 0


class Head(BaseModel):
    """Where a schedule stands. ``anchor`` is what intervals are counted from."""

    anchor: datetime
    created_at: datetime
    updated_at: datetime
    paused: bool = False
    next_at: datetime | None = None
    counts: ScheduleCounts = ScheduleCounts()
    last_error: str | None = None
    active: list[ScheduledRun] = []
    recent: list[ScheduledRun] = []


class StoredSchedule:
    """One schedule's state, read at the start of a handler and written at its end."""

    def __init__(self, ctx: Any, spec: ScheduleSpec | None, head: Head | None, past: Past) -> None:
        self.ctx = ctx
        self.name: str = ctx.key()
        self._spec = spec
        self._head = head
        self.past = past

    @classmethod
    async def read(cls, ctx: Any) -> StoredSchedule:
        """Read what is kept, which may be nothing."""
        spec = await State(ctx, "spec", ScheduleSpec).get()
        head = await State(ctx, "head", Head).get()
        return cls(ctx, spec, head, await State(ctx, "past", Past, default_factory=Past).get())

    @property
    def exists(self) -> bool:
        """Whether there is a schedule of this name."""
        return self._spec is not None and self._head is not None

    @property
    def spec(self) -> ScheduleSpec:
        """What it does; NotFound when there is none."""
        if self._spec is None:
            raise self._not_found()
        return self._spec

    @property
    def head(self) -> Head:
        """Where it stands; NotFound when there is none."""
        if self._head is None:
            raise self._not_found()
        return self._head

    def _not_found(self) -> NotFound:
        return NotFound(f"there is no schedule '{self.name}'; ScheduleIndex/list shows all", metadata={"field": "name"})

    async def write(self, spec: ScheduleSpec, head: Head) -> None:
        """Write what it does, if that is new, and where it stands."""
        if spec != self._spec:
            await State(self.ctx, "spec", ScheduleSpec).set(spec)
        self._spec, self._head = spec, head
        await State(self.ctx, "head", Head).set(head)

    async def clear(self) -> None:
        """Remove the schedule; its past stays."""
        await State(self.ctx, "spec", ScheduleSpec).clear()
        await State(self.ctx, "head", Head).clear()

    async def begin_generation(self) -> None:
        """Make what is on its way do nothing when it arrives."""
        self.past = self.past.model_copy(update={"generation": self.past.generation + 1})
        await State(self.ctx, "past", Past).set(self.past)

    async def note(self, act: ScheduleAction, by: Admitted, now: datetime) -> None:
        """Write an act into the audit log."""
        self.past = self.past.model_copy(update={"acts": self.past.acts + 1})
        await State(self.ctx, "past", Past).set(self.past)
        number = self.past.acts
        entry = ScheduleAuditEntry(number=number, at=now, actor=by.actor, act=act, reason=by.reason, proof=by.proof)
        audit_log = _audit_log(self.ctx)
        await audit_log.set([entry, *await audit_log.get()][:AUDIT_LOG])
        log.info("schedule.act", schedule=self.name, act=act, actor=by.actor, reason=by.reason)

    def send_firing(self, now: datetime) -> None:
        """Send the next firing on its way.

        Under a time scale it comes before its time, and is taken for on time then: a test sees days pass in seconds.
        """
        if (planned := self.head.next_at) is not None:
            firing = Firing(generation=self.past.generation, planned=planned)
            self.ctx.generic_send(
                fire_target.service,
                fire_target.handler,
                _firing_serde.serialize(firing),
                key=self.name,
                send_delay=scaled(max(planned - now, timedelta(0))),  # the SDK can't send into the past
            )

    async def status(self) -> ScheduleStatus:
        """Return the schedule, as it is shown."""
        head, spec = self.head, self.spec
        state = ScheduleState.PAUSED if head.paused else ScheduleState.ACTIVE
        if state is ScheduleState.ACTIVE and head.next_at is None:
            state = ScheduleState.FINISHED
        return ScheduleStatus(
            name=self.name,
            state=state,
            spec=spec,
            generation=self.past.generation,
            next_at=head.next_at,
            counts=head.counts,
            last_error=head.last_error,
            active=head.active,
            recent=head.recent,
            audit_log=await _audit_log(self.ctx).get(),
            created_at=head.created_at,
            updated_at=head.updated_at,
        )


def _audit_log(ctx: Any) -> State[list[ScheduleAuditEntry], list[ScheduleAuditEntry]]:
    return State(ctx, "audit_log", list[ScheduleAuditEntry], default_factory=list)

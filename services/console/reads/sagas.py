"""Sagas: a list out of the engine's tables, and one of them with its timeline."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ValidationError

from perdure import StatusData, Target
from perdure.engine.admin import failure_message, sql_text
from perdure.saga.queries import ALL_PHASES, SagaRow
from perdure.saga.schema import ORCHESTRATIONS_SQL, SAGAS_SQL
from perdure.saga.status import SagaPhase
from perdure.saga.timeline import Timeline
from perdure.status import STATUS_KEY
from services.console.engine import Engine
from services.console.problems import ConsoleError

PAGE_SIZE: Final = 50

# The same without phases: the state of thousands of sagas need not be read to show fifty of them.
_KEYS: Final = f"""
with sagas as (
  select i.id as id, i.target_service_name as service, i.target_service_key as key, i.created_at as started_at
  from sys_invocation_status i where {ORCHESTRATIONS_SQL}
)
"""


class SagaPage(BaseModel):
    """Sagas, the newest first.

    Args:
        items: Those of this page.
        total: How many fit.
        page: Which page this is.
        pages: How many there are.
        services: All services that have sagas.
    """

    items: list[SagaRow]
    total: int
    page: int
    pages: int
    services: list[str]


class Saga(BaseModel):
    """One saga.

    Args:
        status: What its service says of it, or what a workflow without steps wrote with `perdure.update_status`; None
            when there is neither.
        timeline: Its steps, from the engine's journal.
    """

    status: StatusData | None
    timeline: Timeline

    @property
    def phase(self) -> str:
        """Where it stands."""
        if self.status is not None and self.status.phase != SagaPhase.NOT_STARTED:
            if self._was_left:
                return SagaPhase.ORPHANED
            return "paused" if self.timeline.status == "paused" else self.status.phase
        if self.timeline.rollback is not None:
            return self.timeline.rollback.status.value
        return {"success": "completed", "failure": "failed"}.get(self.timeline.result or "", self.timeline.status)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it moves any more until somebody acts."""
        rollback = self.timeline.rollback
        if self.timeline.ended_at is None or self._was_left:
            return False
        return rollback is None or rollback.status != "running"

    @property
    def _was_left(self) -> bool:
        """Whether its orchestration is gone with steps that nobody has undone; the reconciler will have them undone."""
        gone = self.timeline.ended_at is not None and self.timeline.result == "failure"
        unfinished = self.status is not None and self.status.phase == SagaPhase.RUNNING
        return gone and unfinished and self.timeline.rollback is None and bool(self.timeline.steps)


async def page(
    engine: Engine, *, search: str = "", phase: SagaPhase | None = None, service: str | None = None, number: int = 1
) -> SagaPage:
    """Return a page of sagas, the newest first.

    Args:
        engine: The engine.
        search: Part of the key.
        phase: Of this phase only.
        service: Of this service only.
        number: 1 for the first page.

    Raises:
        ConsoleError: The engine does not answer.
    """
    wanted = ["true"]
    if search:
        wanted.append(f"strpos(key, {sql_text(search)}) > 0")
    if phase:
        wanted.append(f"phase = {sql_text(phase)}")
    if service:
        wanted.append(f"service = {sql_text(service)}")
    where = " and ".join(wanted)
    found = SAGAS_SQL if phase else _KEYS
    counts = await engine.query(
        f"{found} select service, sum(case when {where} then 1 else 0 end) as fit from sagas "
        "group by service order by service"
    )
    total = sum(row["fit"] for row in counts)
    pages = max(1, -(-total // PAGE_SIZE))
    order = f"order by started_at desc, id limit {PAGE_SIZE} offset {(min(number, pages) - 1) * PAGE_SIZE}"
    if phase is None:
        ids = [row["id"] for row in await engine.query(f"{found} select id from sagas where {where} {order}")]
        where, order = f"id in ({', '.join(map(sql_text, ids)) or 'null'})", "order by started_at desc, id"
    rows = await engine.query(
        f"{SAGAS_SQL} select id, service, key, phase, failure, started_at, ended_at from sagas where {where} {order}"
    )
    return SagaPage(
        items=[SagaRow.model_validate(row) for row in rows],
        total=total,
        page=min(number, pages),
        pages=pages,
        services=[row["service"] for row in counts],
    )


async def count_by_phase(engine: Engine) -> dict[str, int]:
    """Return how many sagas stand where.

    Args:
        engine: The engine.

    Raises:
        ConsoleError: The engine does not answer.
    """
    rows = await engine.query(f"{SAGAS_SQL} select phase, count(*) as sagas from sagas group by phase")
    found = {row["phase"]: row["sagas"] for row in rows}
    return {phase: found[phase] for phase in ALL_PHASES if phase in found}


async def one(engine: Engine, saga_id: str, service: str | None = None) -> Saga:
    """Return a saga with its timeline.

    Args:
        engine: The engine.
        saga_id: The saga.
        service: Its service, when several have a saga of this id.

    Raises:
        ConsoleError: There is no such saga, or the engine does not answer.
    """
    timeline = await engine.timeline(saga_id, service)
    timeline = timeline.model_copy(update={"failure": failure_message(timeline.failure)})
    return Saga(status=await _status(engine, timeline), timeline=timeline)


async def _status(engine: Engine, timeline: Timeline) -> StatusData | None:
    """Return what its service says; of a workflow without steps, what it wrote of itself, and how it ended."""
    target: Target[None, StatusData] = Target(timeline.service, "status", None, StatusData)
    status: StatusData | None
    try:
        status = await engine.call(target, key=timeline.key)
    except ConsoleError:
        status = None
    if timeline.steps:
        return status
    if status is None or status.phase == SagaPhase.NOT_STARTED:
        status = await _written(engine, timeline) or status
    if status is not None and timeline.ended_at is not None and not status.is_complete:
        end = SagaPhase.COMPLETED if timeline.result == "success" else SagaPhase.FAILED
        error = status.error or timeline.failure
        status = status.model_copy(update={"phase": end.value, "error": error, "is_complete": True})
    return status


async def _written(engine: Engine, timeline: Timeline) -> StatusData | None:
    written = await engine.state(timeline.service, timeline.key, STATUS_KEY)
    try:
        return None if written is None else StatusData.model_validate_json(written)
    except ValidationError:  # another program's entry of this name, or of a later version
        return None

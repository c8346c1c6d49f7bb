"""Sagas: a list out of the engine's tables, and one of them with its timeline."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel

from perdure import Phase, StatusData, Target
from perdure.admin import sql_text
from perdure.saga.timeline import Timeline
from services.console.engine import Engine
from services.console.problems import ConsoleError

PAGE_SIZE: Final = 50
SagaPhase = Literal[
    "running", "paused", "compensating", "needs_attention", "rolled_back", "cancelled", "failed", "lost", "completed"
]
PHASES: Final[tuple[SagaPhase, ...]] = get_args(SagaPhase)

_ORCHESTRATIONS: Final = "i.target_service_ty = 'workflow' and i.target_handler_name = 'run'"

# Where a saga stands is in three places: the engine's row of its orchestration, what the orchestration left behind
# ('saga/closed'), and its rollback, which goes on after it. The joins are by equal keys, so that they stay cheap; still
# they read the state of all sagas, so it is asked only where phases are wanted.
_SAGAS: Final = rf"""
with sagas as (
  select i.id as id, i.target_service_name as service, i.target_service_key as key, i.status as engine_status,
    i.completion_failure as failure, i.created_at as started_at, i.completed_at as ended_at,
    case
      when r.service_key is not null or q.service_key is not null then 'compensating'
      when d.saga is not null or e.saga is not null then 'needs_attention'
      when i.status = 'paused' then 'paused'
      when i.status != 'completed' and f.key is not null then 'compensating'
      when i.status != 'completed' then 'running'
      when i.completion_result = 'success' then 'completed'
      when c.phase = 'cancelled' then 'cancelled'
      when c.rolls_back = 'true' or h.service_key is not null or g.service_key is not null then 'rolled_back'
      when c.service_key is not null then 'failed'
      when s.steps is not null then 'lost'
      else 'failed' end as phase
  from sys_invocation_status i
  left join (select service_name, service_key,
      (regexp_match(value_utf8, '"phase": ?"([a-z_]+)"'))[1] as phase,
      (regexp_match(value_utf8, '"rolls_back": ?(true|false)'))[1] as rolls_back
      from state where key = 'saga/closed') c
    on c.service_name = i.target_service_name and c.service_key = i.target_service_key
  left join (select service_name, service_key, key from state where key = 'saga/failed') f
    on f.service_name = i.target_service_name and f.service_key = i.target_service_key
  left join (select service_name, service_key, 1 as steps from state where key like 'saga/000%1') s
    on s.service_name = i.target_service_name and s.service_key = i.target_service_key
  left join (select service_key from state where service_name = 'Rollbacks' and key = 'open') r
    on r.service_key = i.target_service_key
  left join (select service_key from state where service_name = 'Rollbacks' and key = 'open') q
    on q.service_key = i.target_service_name || ':' || i.target_service_key
  left join (select service_key from state where service_name = 'Rollbacks' and key = 'head') h
    on h.service_key = i.target_service_key
  left join (select service_key from state where service_name = 'Rollbacks' and key = 'head') g
    on g.service_key = i.target_service_name || ':' || i.target_service_key
  left join (select distinct regexp_replace(key, '^[a-z]+/(.*)/[0-9]+$', '\1') as saga from state
      where service_name = 'DeadLetterIndex') d on d.saga = i.target_service_key
  left join (select distinct regexp_replace(key, '^[a-z]+/(.*)/[0-9]+$', '\1') as saga from state
      where service_name = 'DeadLetterIndex') e on e.saga = i.target_service_name || ':' || i.target_service_key
  where {_ORCHESTRATIONS}
)
"""

# The same without phases: the state of thousands of sagas need not be read to show fifty of them.
_KEYS: Final = f"""
with sagas as (
  select i.id as id, i.target_service_name as service, i.target_service_key as key, i.created_at as started_at
  from sys_invocation_status i where {_ORCHESTRATIONS}
)
"""


class SagaRow(BaseModel):
    """One saga of the list.

    Args:
        id: Its orchestration's invocation.
        service: Its service.
        key: Its key.
        phase: Where it stands.
        failure: Why it failed.
        started_at: When it was started.
        ended_at: When its orchestration ended; a rollback may go on.
    """

    id: str
    service: str
    key: str
    phase: SagaPhase
    failure: str | None = None
    started_at: datetime
    ended_at: datetime | None = None


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
        status: What its service says of it; None when it does not answer, or has no handler ``status``.
        timeline: Its steps, from the engine's journal.
    """

    status: StatusData | None
    timeline: Timeline

    @property
    def phase(self) -> str:
        """Where it stands."""
        if self.status is not None and self.status.phase != Phase.NOT_STARTED:
            return "paused" if self.timeline.status == "paused" else self.status.phase
        if self.timeline.rollback is not None:
            return self.timeline.rollback.status.value
        return {"success": "completed", "failure": "failed"}.get(self.timeline.result or "", self.timeline.status)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it moves any more until somebody acts."""
        rollback = self.timeline.rollback
        return self.timeline.ended_at is not None and (rollback is None or rollback.status != "running")


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
    found = _SAGAS if phase else _KEYS
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
        f"{_SAGAS} select id, service, key, phase, failure, started_at, ended_at from sagas where {where} {order}"
    )
    return SagaPage(
        items=[SagaRow.model_validate({**row, "failure": plain(row.get("failure"))}) for row in rows],
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
    rows = await engine.query(f"{_SAGAS} select phase, count(*) as sagas from sagas group by phase")
    found = {row["phase"]: row["sagas"] for row in rows}
    return {phase: found[phase] for phase in PHASES if phase in found}


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
    timeline = timeline.model_copy(update={"failure": plain(timeline.failure)})
    return Saga(status=await _status(engine, timeline.service, timeline.key), timeline=timeline)


async def _status(engine: Engine, service: str, key: str) -> StatusData | None:
    target: Target[None, StatusData] = Target(service, "status", type(None), StatusData)
    try:
        return await engine.call(target, key=key)
    except ConsoleError:
        return None


def plain(failure: Any) -> str | None:
    """Return a failure as people read it: without the engine's number in front, and without a stack trace.

    Args:
        failure: What the engine keeps.
    """
    if not failure:
        return None
    text = str(failure).partition("\nTraceback")[0].strip()
    return re.sub(r"^\[\d{3}[^\]]*\]\s*", "", text)

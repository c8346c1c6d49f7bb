"""Where sagas stand, in a word each, out of the engine's tables: for lists, pages and metrics.

What the reconciler acts on, after a grace and once each, it asks for by itself: `perdure.saga.orphans`.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, field_validator

from perdure.engine.admin import AdminClient, failure_message, sql_text
from perdure.saga.policy import RUN_PREFIX, state_key

SagaPhase = Literal[
    "running", "paused", "compensating", "needs_attention", "rolled_back", "cancelled", "failed", "lost", "completed"
]
PHASES: Final[tuple[SagaPhase, ...]] = get_args(SagaPhase)
OPEN: Final[tuple[SagaPhase, ...]] = ("lost", "needs_attention", "paused", "compensating", "running")
"""Those of sagas that have not come to their end."""

ORCHESTRATIONS: Final = "i.target_service_ty = 'workflow' and i.target_handler_name = 'run'"
"""The condition that a row ``i`` of ``sys_invocation_status`` is an orchestration's."""

# Where a saga stands is in three places: the engine's row of its orchestration, what the orchestration left behind
# ('saga/closed'), and its rollback, which goes on after it. The joins are by equal keys, so that they stay cheap; still
# they read the state of all sagas, so it is asked only where phases are wanted. A saga's id is its workflow's key with
# or without a prefix. An ended run is lost until its steps are in `Rollbacks`, where earlier runs of its key may be
# already; what came from outside has its run's id in a promise, which may be encrypted, so there any rollback of the
# key will do. A key that was used before stands where the rollbacks and the dead letters of all its runs are: no name
# of an entry tells these apart. Of a rollback that was forgotten the ids of its runs are left.
SAGAS: Final = rf"""
with sagas as (
  select i.id as id, i.target_service_name as service, i.target_service_key as key, i.completion_failure as failure,
    i.created_at as started_at, i.completed_at as ended_at,
    case
      when r.service_key is not null or q.service_key is not null then 'compensating'
      when d.saga is not null or e.saga is not null then 'needs_attention'
      when i.status = 'paused' then 'paused'
      when i.status != 'completed' and f.service_key is not null then 'compensating'
      when i.status != 'completed' then 'running'
      when i.completion_result = 'success' then 'completed'
      when o.name is not null and b.name is null then 'lost'
      when c.service_key is null and s.service_key is not null and o.name is null
        and (u.service_key is null or (h.service_key is null and g.service_key is null)) then 'lost'
      when c.phase = 'cancelled' then 'cancelled'
      when c.rolls_back = 'true' or h.service_key is not null or g.service_key is not null then 'rolled_back'
      else 'failed' end as phase
  from sys_invocation_status i
  left join (select service_name, service_key,
      (regexp_match(value_utf8, '"phase": ?"([a-z_]+)"'))[1] as phase,
      (regexp_match(value_utf8, '"rolls_back": ?(true|false)'))[1] as rolls_back
      from state where key = 'saga/closed') c
    on c.service_name = i.target_service_name and c.service_key = i.target_service_key
  left join (select service_name, service_key from state where key = 'saga/failed') f
    on f.service_name = i.target_service_name and f.service_key = i.target_service_key
  left join (select service_name, service_key from state where key = '{state_key(1)}') s
    on s.service_name = i.target_service_name and s.service_key = i.target_service_key
  left join (select service_name, service_key, key as name from state where service_name != 'Rollbacks'
      and key like '{RUN_PREFIX}%') o
    on o.service_name = i.target_service_name and o.service_key = i.target_service_key
  left join (select key as name from state where service_name = 'Rollbacks' and key like '{RUN_PREFIX}%') b
    on b.name = o.name
  left join (select service_name, service_key from sys_promise where key = 'saga/undo') u
    on u.service_name = i.target_service_name and u.service_key = i.target_service_key
  left join (select service_key from state where service_name = 'Rollbacks' and key = 'open') r
    on r.service_key = i.target_service_key
  left join (select service_key from state where service_name = 'Rollbacks' and key = 'open') q
    on q.service_key = i.target_service_name || ':' || i.target_service_key
  left join (select distinct service_key from state where service_name = 'Rollbacks'
      and (key = 'head' or key like '{RUN_PREFIX}%')) h
    on h.service_key = i.target_service_key
  left join (select distinct service_key from state where service_name = 'Rollbacks'
      and (key = 'head' or key like '{RUN_PREFIX}%')) g
    on g.service_key = i.target_service_name || ':' || i.target_service_key
  left join (select distinct regexp_replace(key, '^[a-z]+/(.*)/[0-9]+$', '\1') as saga from state
      where service_name = 'DeadLetterIndex') d on d.saga = i.target_service_key
  left join (select distinct regexp_replace(key, '^[a-z]+/(.*)/[0-9]+$', '\1') as saga from state
      where service_name = 'DeadLetterIndex') e on e.saga = i.target_service_name || ':' || i.target_service_key
  where {ORCHESTRATIONS}
)
"""
"""The beginning of a query: a table ``sagas`` with id, service, key, failure, started_at, ended_at and phase."""


class SagaRow(BaseModel):
    """One saga of a list.

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

    @field_validator("failure", mode="before")
    @classmethod
    def _failure_message(cls, failure: Any) -> str | None:
        return failure_message(failure)


class SagaList(BaseModel):
    """Sagas, the oldest first.

    Args:
        items: As many as were asked for.
        total: How many there are.
    """

    items: list[SagaRow]
    total: int


async def list_sagas(
    admin: AdminClient, *, phases: Collection[SagaPhase] = OPEN, service: str | None = None, limit: int = 50
) -> SagaList:
    """Return sagas, the oldest first.

    Args:
        admin: The engine.
        phases: Those that stand here.
        service: Of this service only.
        limit: At most so many.

    Raises:
        EngineError: The engine does not answer.
    """
    where = f"phase in ({', '.join(map(sql_text, phases)) or 'null'})"
    if service is not None:
        where += f" and service = {sql_text(service)}"
    counted = await admin.query(f"{SAGAS} select count(*) as number from sagas where {where}")
    rows = await admin.query(
        f"{SAGAS} select id, service, key, phase, failure, started_at, ended_at from sagas where {where} "
        f"order by started_at, id limit {limit}"
    )
    return SagaList(items=[SagaRow.model_validate(row) for row in rows], total=counted[0]["number"])

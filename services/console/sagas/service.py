"""Queries for sagas."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from pydantic import ValidationError

from perdure import KeyedTarget, StatusData
from perdure.engine.admin import failure_message, sql_interval, sql_text
from perdure.saga.queries import HISTORY, OPEN_PHASES, SagaRow, open_sagas_sql, recent_sagas_sql
from perdure.saga.schema import ORCHESTRATIONS_SQL, sagas_sql
from perdure.saga.status import SagaPhase
from perdure.saga.timeline import Timeline
from perdure.status import STATUS_KEY
from services.console.engine import EngineClient
from services.console.problems import ConsoleError
from services.console.sagas.schemas import Saga, SagaPage

PAGE_SIZE: Final = 50


async def list_page(
    engine: EngineClient,
    *,
    search: str = "",
    phase: SagaPhase | None = None,
    service: str | None = None,
    since: timedelta = HISTORY,
    number: int = 1,
) -> SagaPage:
    """Return a page of sagas, newest first.

    Args:
        engine: The engine.
        search: A part of the key.
        phase: Only this phase.
        service: Only this service.
        since: Only sagas that started within this time, or whose orchestration has not ended.
        number: The number of the page.
    """
    filters = ["true"]
    if search:
        filters.append(f"strpos(key, {sql_text(search)}) > 0")
    if phase:
        filters.append(f"phase = {sql_text(phase)}")
    if service:
        filters.append(f"service = {sql_text(service)}")
    where = " and ".join(filters)
    if phase is None:
        source = _ids_sql(since)
    elif phase in OPEN_PHASES:
        source = await open_sagas_sql(engine.query)
    else:
        source = recent_sagas_sql(since)
    counts = await engine.query(
        f"{source} select service, sum(case when {where} then 1 else 0 end) as matches from sagas "
        "group by service order by service"
    )
    total = sum(row["matches"] for row in counts)
    pages = max(1, -(-total // PAGE_SIZE))
    order = f"order by started_at desc, id limit {PAGE_SIZE} offset {(min(number, pages) - 1) * PAGE_SIZE}"
    if phase is None:
        found = await engine.query(f"{source} select id, key from sagas where {where} {order}")
        source = sagas_sql(f"i.id in ({_texts(found, 'id')})", keys=[row["key"] for row in found] or None)
        where, order = "true", "order by started_at desc, id"
    rows = await engine.query(
        f"{source} select id, service, key, phase, failure, started_at, ended_at from sagas where {where} {order}"
    )
    return SagaPage(
        items=[SagaRow.model_validate(row) for row in rows],
        total=total,
        page=min(number, pages),
        pages=pages,
        services=[row["service"] for row in counts],
    )


def _texts(rows: list[dict[str, Any]], column: str) -> str:
    return ", ".join(sql_text(row[column]) for row in rows) or "null"


def _ids_sql(since: timedelta) -> str:
    """Return the table ``sagas`` without phases, which would read the state of every saga."""
    return f"""
with sagas as (
  select i.id as id, i.target_service_name as service, i.target_service_key as key, i.created_at as started_at
  from sys_invocation_status i
  where {ORCHESTRATIONS_SQL} and (i.created_at > now() - {sql_interval(since)} or i.status != 'completed')
)
"""


async def count_open(engine: EngineClient) -> dict[str, int]:
    """Return the number of open sagas by phase."""
    source = await open_sagas_sql(engine.query)
    rows = await engine.query(f"{source} select phase, count(*) as sagas from sagas group by phase")
    counts = {row["phase"]: row["sagas"] for row in rows}
    return {phase: counts[phase] for phase in OPEN_PHASES if phase in counts}


async def get(engine: EngineClient, saga_id: str, service: str | None = None) -> Saga:
    """Return a saga with its timeline; `service` chooses among several services with the same saga ID."""
    timeline = await engine.timeline(saga_id, service)
    timeline = timeline.model_copy(update={"failure": failure_message(timeline.failure)})
    return Saga(status=await _status(engine, timeline), timeline=timeline)


async def _status(engine: EngineClient, timeline: Timeline) -> StatusData | None:
    """Return the status from the service, or for a workflow without steps, from its state and its result."""
    target: KeyedTarget[None, StatusData] = KeyedTarget(timeline.service, "status", None, StatusData)
    status: StatusData | None
    try:
        status = await engine.call(target, key=timeline.key)
    except ConsoleError:
        status = None
    if timeline.steps:
        return status
    if status is None or status.phase == SagaPhase.NOT_STARTED:
        status = await _stored_status(engine, timeline) or status
    if status is not None and timeline.ended_at is not None and not status.is_complete:
        phase = SagaPhase.COMPLETED if timeline.result == "success" else SagaPhase.FAILED
        error = status.error or timeline.failure
        status = status.model_copy(update={"phase": phase.value, "error": error, "is_complete": True})
    return status


async def _stored_status(engine: EngineClient, timeline: Timeline) -> StatusData | None:
    stored = await engine.state(timeline.service, timeline.key, STATUS_KEY)
    try:
        return None if stored is None else StatusData.model_validate_json(stored)
    except ValidationError:  # another program's entry of this name, or another version
        return None

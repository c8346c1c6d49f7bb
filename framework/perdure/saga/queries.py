"""Saga status queries over the engine's tables, for lists and pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel, field_validator

from perdure.engine.admin import AdminClient, failure_message, sql_interval, sql_text
from perdure.saga.schema import OPEN_EXECUTIONS_SQL, OPEN_ORCHESTRATIONS_SQL, sagas_sql
from perdure.saga.status import SagaPhase

ALL_PHASES: Final = tuple(phase for phase in SagaPhase if phase is not SagaPhase.NOT_STARTED)
"""Phases of a saga that the engine knows."""
OPEN_PHASES: Final = (
    SagaPhase.ORPHANED,
    SagaPhase.NEEDS_ATTENTION,
    SagaPhase.PAUSED,
    SagaPhase.COMPENSATING,
    SagaPhase.RUNNING,
)
"""Phases of sagas that have not ended."""

HISTORY: Final = timedelta(days=1)
"""How far a search for ended sagas looks back by default."""

_MAX_NAMED: Final = 500


class SagaRow(BaseModel):
    """One saga of a list.

    Args:
        id: The invocation of its orchestration.
        service: Its service.
        key: Its key.
        phase: Its phase.
        failure: The error of a failed orchestration.
        started_at: When it was started.
        ended_at: When its orchestration ended; a rollback may continue.
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
    """Sagas, oldest first.

    Args:
        items: The sagas, up to the limit.
        total: Number of matches.
    """

    items: list[SagaRow]
    total: int


async def list_sagas(
    admin: AdminClient,
    *,
    phases: Collection[SagaPhase] = OPEN_PHASES,
    service: str | None = None,
    since: timedelta = HISTORY,
    limit: int = 50,
    conditions: Collection[str] = (),
) -> SagaList:
    """Return sagas, oldest first.

    Args:
        admin: The engine.
        phases: Only these phases.
        service: Only this service.
        since: Only sagas that started within this time; open sagas are listed whatever their age.
        limit: Maximum number of items.
        conditions: Further SQL conditions on the table ``sagas``, see `perdure.saga.filters.SagaFilter`.

    Raises:
        EngineError: The engine does not answer.
    """
    where = f"phase in ({', '.join(map(sql_text, phases)) or 'null'})"
    if service is not None:
        where += f" and service = {sql_text(service)}"
    where = " and ".join((where, *conditions))
    sagas = await open_sagas_sql(admin.query) if set(phases) <= set(OPEN_PHASES) else recent_sagas_sql(since)
    rows = await admin.query(
        f"{sagas} select id, service, key, phase, failure, started_at, ended_at, count(*) over () as number from sagas "
        f"where {where} order by started_at, id limit {limit}"
    )
    return SagaList(items=[SagaRow.model_validate(row) for row in rows], total=rows[0]["number"] if rows else 0)


def recent_sagas_sql(since: timedelta) -> str:
    """Return the table ``sagas`` (see `sagas_sql`) of the sagas that started within a time."""
    return sagas_sql(f"i.created_at > now() - {sql_interval(since)}")


async def open_sagas_sql(query: Callable[[str], Awaitable[list[dict[str, Any]]]]) -> str:
    """Return the table ``sagas`` (see `sagas_sql`) of the sagas that have not completed with success.

    A saga that completed can be open: a parent rolls back its child.

    Args:
        query: Runs an SQL query, see `AdminClient.query`.

    Raises:
        EngineError: The engine does not answer.
    """
    keys = {row["key"] for row in await query(OPEN_EXECUTIONS_SQL)}
    if not keys:
        return sagas_sql(OPEN_ORCHESTRATIONS_SQL)
    if len(keys) > _MAX_NAMED:
        return sagas_sql()
    named = ", ".join(map(sql_text, sorted(keys)))
    return sagas_sql(f"({OPEN_ORCHESTRATIONS_SQL} or i.target_service_key in ({named}))")

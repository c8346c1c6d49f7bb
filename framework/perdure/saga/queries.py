"""Saga status queries over the engine's tables, for lists and pages."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, field_validator

from perdure.engine.admin import AdminClient, failure_message, sql_text
from perdure.saga.schema import SAGAS_SQL
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
    limit: int = 50,
    conditions: Collection[str] = (),
) -> SagaList:
    """Return sagas, oldest first.

    Args:
        admin: The engine.
        phases: Only these phases.
        service: Only this service.
        limit: Maximum number of items.
        conditions: Further SQL conditions on the table ``sagas``, see `perdure.saga.filters.SagaFilter`.

    Raises:
        EngineError: The engine does not answer.
    """
    where = f"phase in ({', '.join(map(sql_text, phases)) or 'null'})"
    if service is not None:
        where += f" and service = {sql_text(service)}"
    where = " and ".join((where, *conditions))
    counted = await admin.query(f"{SAGAS_SQL} select count(*) as number from sagas where {where}")
    rows = await admin.query(
        f"{SAGAS_SQL} select id, service, key, phase, failure, started_at, ended_at from sagas where {where} "
        f"order by started_at, id limit {limit}"
    )
    return SagaList(items=[SagaRow.model_validate(row) for row in rows], total=counted[0]["number"])

"""Queries for orphaned sagas and rollbacks: those that were killed, or that stand still.

What `perdure.saga.reconciler` acts on. Where every saga stands, for people, is another question:
`perdure.saga.queries`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal

from pydantic import BaseModel

from perdure.alerts.service import DISPATCHER as ALERT_DISPATCHER
from perdure.engine.admin import AdminClient
from perdure.saga.policy import RUN_PREFIX
from perdure.saga.reconciler_config import SagaReconcilerConfig

__all__ = ["HANDED_OVER", "Kind", "OrphanedSaga", "look", "sql_interval"]

Kind = Literal["lost", "unopened", "paused", "stalled", "halted"]
HANDED_OVER: Final[tuple[Kind, ...]] = ("lost", "unopened")
"""Kinds that are acted on once. What is set going again may stop again before the next look, and is acted on then; what
was paused and is killed for it is lost by then."""


class OrphanedSaga(BaseModel):
    """What the reconciler found.

    Args:
        kind: A lost orchestration, one whose rollback never began, a paused one, a rollback that stands still, or one
            of which something is halted (paused).
        id: The invocation, or the saga of a rollback.
        service: The service.
        key: Its key.
        reason: What the engine says of it.
        began: When the invocation was made: a workflow's key that is used again gives the same invocation id.
    """

    kind: Kind
    id: str
    service: str
    key: str
    reason: str = ""
    began: str = ""

    @property
    def mark(self) -> str:
        """What tells it from every other find."""
        return f"{self.id}@{self.began}" if self.began else self.id


def _queries(config: SagaReconcilerConfig) -> dict[Kind, str]:
    """Return the queries that find what nobody looks after, by kind.

    Args:
        config: Grace and limits.
    """
    open_saga = """
      exists (select 1 from state s where s.service_name = i.target_service_name
              and s.service_key = i.target_service_key and s.key like 'saga/0%')
      and not exists (select 1 from state s where s.service_name = i.target_service_name
              and s.service_key = i.target_service_key and s.key = 'saga/closed')"""
    columns = "i.id as id, i.target_service_name as service, i.target_service_key as key, i.created_at as began"
    grace = sql_interval(config.grace)
    queries: dict[Kind, str] = {
        # First: what is resumed here may be what the others are to be handed over by.
        "halted": f"""
      select i.id as id, i.target_service_name as service, coalesce(i.target_service_key, '') as key,
      i.target_handler_name || ' is paused' as reason from sys_invocation_status i
      where (i.target_service_name in ('Rollbacks', 'RollbackDispatcher', 'DeadLetterIndex', '{ALERT_DISPATCHER}')
      or (i.target_service_ty = 'workflow' and i.target_handler_name = 'roll_back'
      and i.invoked_by_service_name = 'RollbackDispatcher'))
      and i.status = 'paused'
      and i.modified_at < now() - {grace}""",
        "lost": f"""
      select {columns}, i.completion_failure as reason from sys_invocation_status i
      where i.target_service_ty = 'workflow' and i.target_handler_name = 'run' and i.status = 'completed'
      and i.completion_result = 'failure' and i.modified_at < now() - {grace} and {open_saga}""",
        "unopened": f"""
      select {columns}, 'its rollback never began' as reason from sys_invocation_status i
      join state s on s.service_name = i.target_service_name and s.service_key = i.target_service_key
      where i.target_service_ty = 'workflow' and i.target_handler_name = 'run' and i.status = 'completed'
      and i.modified_at < now() - {grace} and s.key like '{RUN_PREFIX}%'
      and not exists (select 1 from state r where r.service_name = 'Rollbacks' and r.key = s.key)""",
        "stalled": f"""
      select s.service_key as id, s.service_name as service, s.service_key as key, 'nothing is running' as reason
      from state s where s.service_name = 'Rollbacks' and s.key = 'open'
      and exists (select 1 from state h where h.service_name = 'Rollbacks' and h.key = 'head'
              and h.service_key = s.service_key)
      and not exists (select 1 from sys_invocation_status i where i.target_service_name = 'Rollbacks'
              and i.target_service_key = s.service_key and i.target_handler_name in ('run', 'resume')
              and (i.status != 'completed' or i.modified_at >= now() - {grace}))""",
    }
    if config.paused_limit is not None:
        queries["paused"] = f"""
      select {columns}, 'paused' as reason from sys_invocation_status i
      where i.target_service_ty = 'workflow' and i.target_handler_name = 'run' and i.status = 'paused'
      and i.modified_at < now() - {sql_interval(config.paused_limit)} and {open_saga}"""
    return queries


def sql_interval(duration: timedelta) -> str:
    """Return a duration as the engine's SQL takes it."""
    return f"interval '{int(duration.total_seconds() * 1000)} milliseconds'"


async def look(admin: AdminClient, config: SagaReconcilerConfig) -> list[OrphanedSaga]:
    """Ask the engine what nobody looks after.

    Args:
        admin: The engine.
        config: Grace and limits.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    return [
        OrphanedSaga(kind=kind, **{**row, "reason": row["reason"] or ""})
        for kind, sql in _queries(config).items()
        for row in await admin.query(sql)
    ]

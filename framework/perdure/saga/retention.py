"""Retention of ended rollbacks: their state would only grow, and the reconciler reads it in every scan.

A rollback that ends with no dead letters schedules a `Purge` of itself, which clears its state unless it has changed.
The execution markers, a few bytes each, remain: without them a retained orchestration would look orphaned and would be
rolled back again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import restate
from pydantic import BaseModel, ConfigDict

from perdure.clients import ObjectClient
from perdure.errors import ConfigurationError
from perdure.observability.logging import get_logger
from perdure.saga.compensations import RESULT_RETENTION
from perdure.saga.executions import executions_of, report_of
from perdure.saga.schema import (
    EXECUTION_PREFIX,
    ROLLBACKS,
    RollbackProgress,
    all_step_progress,
    open_marker,
    rollback_progress_state,
    saga_state,
)
from perdure.saga.status import RollbackState
from perdure.state import State
from perdure.targets import KeyedTarget

RETENTION: Final = timedelta(days=90)

_CLOSED = (RollbackState.ROLLED_BACK, RollbackState.FINISHED_FORWARD)

log = get_logger("perdure.saga")


class Purge(BaseModel):
    """Request of a rollback to purge itself, if it has not changed.

    Args:
        generation: Its last pass.
        actions: The number of its audit entries.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int
    actions: int


purge_target: KeyedTarget[Purge, bool] = KeyedTarget(ROLLBACKS, "purge", Purge, bool)


def check_retention(duration: timedelta | None) -> timedelta | None:
    """Return a retention of rollbacks; None for ever.

    Raises:
        ConfigurationError: The engine may still have the idempotency keys of the purged rollback. The next execution
            numbers its steps from 1 again and would attach to those compensations.
    """
    if duration is not None and duration <= RESULT_RETENTION:
        raise ConfigurationError(
            f"a rollback retention of {duration} is too short: set more than {RESULT_RETENTION}, the time for which "
            "the engine stores the results of compensations, or None for no limit"
        )
    return duration


async def plan_purge(
    ctx: restate.ObjectContext, progress: RollbackProgress, state: RollbackState, retention: timedelta | None
) -> None:
    """Schedule the purge of a rollback whose executions are all closed."""
    if retention is not None and state in _CLOSED:
        this = Purge(generation=progress.generation, actions=progress.actions)
        await ObjectClient(ctx, purge_target, ctx.key()).send(this, delay=retention)


async def purge_unchanged(ctx: restate.ObjectContext, this: Purge) -> bool:
    """Clear the state of a rollback unless it has changed; return whether it was cleared."""
    saga, progress = await saga_state(ctx).get(), await rollback_progress_state(ctx).get()
    if saga is None or progress is None:
        return False
    report = report_of(executions_of(saga), await all_step_progress(ctx, saga))
    is_closed = report.outcome in _CLOSED and await open_marker(ctx).get() is None
    if not is_closed or progress.waiters or (progress.generation, progress.actions) != (this.generation, this.actions):
        log.info("saga.rollback.not_purged", saga=saga.saga_id, reason="changed" if is_closed else "open")
        return False
    for name in await ctx.state_keys():
        if not name.startswith(EXECUTION_PREFIX):
            await State(ctx, name, bool).clear()  # the type does not matter
    log.info("saga.rollback.purged", saga=saga.saga_id, executions=len(executions_of(saga)))
    return True

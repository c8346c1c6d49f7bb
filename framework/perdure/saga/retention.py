"""Forgetting rollbacks that are over: what is kept of them would only grow, and the reconciler reads it at each look.

A rollback that ends with nothing left to do sends itself a `Purge`, which comes a good while later and clears what it
kept, unless something has changed since. The ids of its runs stay, a few bytes each: they tell a run that was undone
from one that never was, as long as a workflow remembers its run. So nothing is undone again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import restate
from pydantic import BaseModel, ConfigDict

from perdure._runtime.time_scale import scaled
from perdure.clients import ObjectClient
from perdure.errors import ConfigurationError
from perdure.observability.logging import get_logger
from perdure.saga.compensations import RESULT_RETENTION
from perdure.saga.executions import executions_of, report_of
from perdure.saga.policy import RUN_PREFIX, Outcome
from perdure.saga.rollback_state import Head, all_progress, head_state, open_mark, request_state
from perdure.state import State
from perdure.targets import Target

FORGET_AFTER: Final = timedelta(days=90)

_CLOSED = (Outcome.ROLLED_BACK, Outcome.FINISHED_FORWARD)

log = get_logger("perdure.saga")

_after: timedelta | None = FORGET_AFTER


class Purge(BaseModel):
    """Asks a rollback to forget itself.

    Args:
        generation: Which pass was its last.
        acts: How many acts of operators its audit log had.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int
    acts: int


purge_target: Target[Purge, bool] = Target("Rollbacks", "forget", Purge, bool)


def forget_after(duration: timedelta | None) -> None:
    """Set after how long the rollbacks of this process are forgotten once they are over.

    Args:
        duration: How long; None for never.

    Raises:
        ConfigurationError: It is not longer than the engine remembers what came of undoing a step. The next run of a
            forgotten saga counts its steps from 1 again, and would be taken for the one before.
    """
    global _after  # noqa: PLW0603 - `Rollbacks` is one object, defined with its module
    if duration is not None and duration <= RESULT_RETENTION:
        raise ConfigurationError(
            f"forget_after: {duration} is too short: it must be longer than {RESULT_RETENTION}, for which the engine "
            "remembers what came of undoing a step; None keeps rollbacks for ever"
        )
    _after = duration


async def plan_purge(ctx: restate.ObjectContext, head: Head, outcome: Outcome) -> None:
    """Have a rollback forgotten after a while, if there is nothing left to do.

    Args:
        ctx: A context of the rollback, at its end.
        head: How far it is.
        outcome: How all its runs together stand.
    """
    if _after is not None and outcome in _CLOSED:
        this = Purge(generation=head.generation, acts=head.acts)
        await ObjectClient(ctx, purge_target, ctx.key()).send(this, delay=scaled(_after))


async def purge_unchanged(ctx: restate.ObjectContext, this: Purge) -> bool:
    """Clear what is kept of a rollback, unless something has changed since; tell if it was cleared.

    Args:
        ctx: A context of the rollback.
        this: How it stood when it ended.
    """
    saga, head = await request_state(ctx).get(), await head_state(ctx).get()
    if saga is None or head is None:
        return False
    progress = await all_progress(ctx, saga)
    is_over = report_of(executions_of(saga), progress).outcome in _CLOSED and await open_mark(ctx).get() is None
    if not is_over or head.waiters or (head.generation, head.acts) != (this.generation, this.acts):
        log.info("saga.rollback.kept", saga=saga.saga_id, why="it went on since" if is_over else "it is not over")
        return False
    for name in await ctx.state_keys():
        if not name.startswith(RUN_PREFIX):
            await State(ctx, name, bool).clear()  # the type is of no matter
    log.info("saga.rollback.forgotten", saga=saga.saga_id, runs=len(executions_of(saga)))
    return True

"""Rolling back a saga from outside its orchestration: a finished child's, or a lost one's."""

from __future__ import annotations

from typing import cast

import restate

from perdure._wake_ups import make_wait_id
from perdure.errors import Conflict, NotFound, SagaError
from perdure.saga.config import SagaConfig
from perdure.saga.messages import NEVER_COMPLETED_HEADER, ExternalRollbackReceipt, ExternalRollbackRequest
from perdure.saga.progress import mark_undone_from_outside, read_rollback, read_steps
from perdure.saga.schema import CLOSED_KEY, ClosedSaga, RollbackRequest
from perdure.saga.status import RollbackState
from perdure.saga.submission import begin, outcome_of, run_id
from perdure.state import ReadOnlyState


async def roll_back_ended(
    ctx: restate.WorkflowSharedContext, request: ExternalRollbackRequest, saga_id: str, service: str, config: SagaConfig
) -> ExternalRollbackReceipt:
    """Hand the record that an orchestration left behind to `Rollbacks`.

    The caller answers for its having ended: an undo beside a running orchestration could be overtaken by it.

    Args:
        ctx: A shared handler's context of the orchestration.
        request: Why, and whether to wait.
        saga_id: The saga.
        service: The orchestration's service.
        config: How to roll back.

    Raises:
        NotFound: There is no record; it never began, or its retention is over. Terminal, 404.
        Conflict: It is asked for by a parent that did not start it. Terminal, 409.
        SagaError: The rollback needs attention; only when it is waited for. Terminal, 500.
    """
    caller = cast("restate.Context", ctx)
    before = await read_rollback(ctx, saga_id)
    steps = await read_steps(ctx)
    if steps and request.parent is not None and steps[0].parent != request.parent:
        if not _never_completed(ctx):  # then its own run, if there was one, is not on record any more
            starter = f"the saga '{steps[0].parent}'" if steps[0].parent else "no saga"
            raise Conflict(
                f"saga '{saga_id}' was started by {starter}, so '{request.parent}' must not undo it: give each child a "
                "key of its own; see by hand if there is anything to undo, and resolve this",
                metadata={"saga": saga_id},
            )
        return ExternalRollbackReceipt(saga_id=saga_id, started=False)
    if not steps and (await _ended_without_steps(ctx) or (before is None and _never_completed(ctx))):
        return ExternalRollbackReceipt(saga_id=saga_id, started=False)
    if not steps and before is None:
        raise NotFound(
            f"saga '{saga_id}' left no record: it never began, or the retention of its workflow is over",
            metadata={"saga": saga_id},
        )
    # Without a record it is about a rollback that is there already.
    run, is_new = await run_id(ctx) if steps else (None, False)
    await mark_undone_from_outside(ctx)
    receipt = ExternalRollbackReceipt(saga_id=saga_id, started=is_new or before is None)
    handed_over = RollbackRequest(
        saga_id=saga_id,
        service=service,
        config=config,
        steps=steps,
        completed={step.position: False for step in steps if step.compensation in request.failed_children},
        reason=request.reason,
        runs=[] if run is None else [run],
    )
    if not request.wait:
        await begin(ctx, handed_over)
        return receipt
    report = await outcome_of(caller, handed_over, await make_wait_id(caller, "the rollback"))
    if report.outcome is not RollbackState.ROLLED_BACK:
        raise SagaError(
            f"the rollback of saga '{saga_id}' needs attention: {', '.join(report.dead_letters)}",
            metadata={"saga": saga_id, "dead_letters": ",".join(report.dead_letters)},
        )
    return receipt


async def _ended_without_steps(ctx: restate.WorkflowSharedContext) -> bool:
    return await ReadOnlyState(ctx, CLOSED_KEY, ClosedSaga).get() is not None


def _never_completed(ctx: restate.WorkflowSharedContext) -> bool:
    """Tell if the parent knows that this child ended without a result: then it was killed before its first step.

    Of any other child without a record nobody knows whether it never began, or whether its retention is over.
    """
    return NEVER_COMPLETED_HEADER in ctx.request().headers

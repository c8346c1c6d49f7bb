"""Rollback of a saga from outside its orchestration: of a finished child, or of an orphaned saga."""

from __future__ import annotations

from typing import cast

import restate

from perdure._wake_ups import make_wait_id
from perdure.errors import Conflict, NotFound, SagaError
from perdure.saga.config import SagaConfig
from perdure.saga.messages import NEVER_COMPLETED_HEADER, ExternalRollbackReceipt, ExternalRollbackRequest
from perdure.saga.progress import mark_external_rollback, read_rollback, read_steps
from perdure.saga.schema import CLOSED_KEY, ClosedSaga, RollbackRequest
from perdure.saga.status import RollbackState
from perdure.saga.submission import await_rollback, external_execution_id, submit_and_confirm
from perdure.state import ReadOnlyState


async def roll_back_from_outside(
    ctx: restate.WorkflowSharedContext, request: ExternalRollbackRequest, saga_id: str, service: str, config: SagaConfig
) -> ExternalRollbackReceipt:
    """Submit the record of an ended orchestration to `Rollbacks`.

    The caller guarantees that the orchestration has ended: a running step could act after its compensation.

    Raises:
        NotFound: There is no record. Terminal, 404.
        Conflict: The request names a parent that did not start this saga. Terminal, 409.
        SagaError: The rollback, if it is awaited, needs attention. Terminal, 500.
    """
    caller = cast("restate.Context", ctx)
    earlier = await read_rollback(ctx, saga_id)
    steps = await read_steps(ctx)
    if steps and request.parent is not None and steps[0].parent != request.parent:
        if not _never_completed(ctx):  # otherwise this record is another execution's, and the child's own is gone
            starter = f"the saga '{steps[0].parent}'" if steps[0].parent else "no saga"
            raise Conflict(
                f"saga '{saga_id}' was started by {starter}, so '{request.parent}' must not roll it back: give each "
                "child a unique key; check its effects manually, then resolve this step",
                metadata={"saga": saga_id},
            )
        return ExternalRollbackReceipt(saga_id=saga_id, started=False)
    if not steps and (await _ended_without_steps(ctx) or (earlier is None and _never_completed(ctx))):
        return ExternalRollbackReceipt(saga_id=saga_id, started=False)
    if not steps and earlier is None:
        raise NotFound(
            f"saga '{saga_id}' has no record: it never began, or the retention of its workflow is over",
            metadata={"saga": saga_id},
        )
    # Without a record, the request concerns the existing rollback.
    execution, is_new = await external_execution_id(ctx) if steps else (None, False)
    await mark_external_rollback(ctx)
    receipt = ExternalRollbackReceipt(saga_id=saga_id, started=is_new or earlier is None)
    rollback = RollbackRequest(
        saga_id=saga_id,
        service=service,
        config=config,
        steps=steps,
        completed={step.position: False for step in steps if step.compensation in request.failed_children},
        reason=request.reason,
        execution_ids=[] if execution is None else [execution],
    )
    if not request.wait:
        await submit_and_confirm(ctx, rollback)
        return receipt
    report = await await_rollback(caller, rollback, await make_wait_id(caller, "the rollback"))
    if report.outcome is not RollbackState.ROLLED_BACK:
        raise SagaError(
            f"the rollback of saga '{saga_id}' needs attention: {', '.join(report.dead_letters)}",
            metadata={"saga": saga_id, "dead_letters": ",".join(report.dead_letters)},
        )
    return receipt


async def _ended_without_steps(ctx: restate.WorkflowSharedContext) -> bool:
    return await ReadOnlyState(ctx, CLOSED_KEY, ClosedSaga).get() is not None


def _never_completed(ctx: restate.WorkflowSharedContext) -> bool:
    """Return whether the parent knows that this child ended without a result, so that a missing record is expected."""
    return NEVER_COMPLETED_HEADER in ctx.request().headers

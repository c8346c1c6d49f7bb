"""Rollback of a saga from outside its orchestration: of a finished child, or of an orphaned saga."""

from __future__ import annotations

from typing import cast

import restate

from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import is_own_cancel
from perdure._wake_ups import make_wait_id
from perdure.clients import ObjectClient
from perdure.errors import Conflict, NotFound, SagaError, TerminalError
from perdure.saga.config import SagaConfig
from perdure.saga.held_step_messages import Release, release_steps
from perdure.saga.messages import (
    NEVER_COMPLETED_HEADER,
    ExecutionStatus,
    ExternalRollbackReceipt,
    ExternalRollbackRequest,
    rollback_status,
)
from perdure.saga.progress import read_closed, read_steps
from perdure.saga.schema import HELD_MARK_PREFIX, RollbackRequest
from perdure.saga.status import CompensationState, RollbackState
from perdure.saga.submission import OUTCOME_POLLS, await_rollback, external_execution, submit_and_confirm


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
    steps = await read_steps(ctx)
    if not steps:
        return await _without_record(ctx, request, saga_id, service)
    if request.parent is not None and steps[0].parent != request.parent:
        if not _never_completed(ctx):  # otherwise this record is another execution's, and the child's own is gone
            starter = f"the saga '{steps[0].parent}'" if steps[0].parent else "no saga"
            raise Conflict(
                f"saga '{saga_id}' was started by {starter}, so '{request.parent}' must not roll it back: give each "
                "child a unique key; check its effects manually, then resolve this step",
                metadata={"saga": saga_id},
            )
        return ExternalRollbackReceipt(saga_id=saga_id, started=False)
    if any(name.startswith(HELD_MARK_PREFIX) for name in await ctx.state_keys()):
        await ObjectClient(caller, release_steps, saga_id).send(Release(service=service))
    execution, is_new = await external_execution(ctx, saga_id)
    rollback = RollbackRequest(
        saga_id=saga_id,
        execution=execution,
        service=service,
        config=config,
        steps=steps,
        completed={step.position: False for step in steps if step.compensation in request.failed_children},
        reason=request.reason,
    )
    if request.wait:
        report = await await_rollback(caller, rollback, await make_wait_id(caller, "the rollback"))
        _check_outcome(saga_id, report.outcome, report.dead_letters)
    else:
        await submit_and_confirm(ctx, rollback)
    return ExternalRollbackReceipt(saga_id=saga_id, started=is_new)


async def _without_record(
    ctx: restate.WorkflowSharedContext, request: ExternalRollbackRequest, saga_id: str, service: str
) -> ExternalRollbackReceipt:
    """Wait for the rollbacks of a saga whose record has no steps, or is gone with the workflow's retention."""
    if await read_closed(ctx) is None:
        executions = await _read_executions(ctx, saga_id, service)
        if not executions and not _never_completed(ctx):
            raise NotFound(
                f"saga '{saga_id}' has no record: it never began, or the retention of its workflow is over",
                metadata={"saga": saga_id},
            )
        polls = 0
        while request.wait and any(each.status is RollbackState.RUNNING for each in executions):
            polls += 1
            delay = scaled(OUTCOME_POLLS.delay_after(polls))
            await cast("restate.Context", ctx).sleep(delay, "before the rollback is read again")
            executions = await _read_executions(ctx, saga_id, service)
        for each in executions if request.wait else []:
            letters = [step.step for step in each.steps if step.state is CompensationState.DEAD_LETTER]
            _check_outcome(saga_id, each.status, letters)
    return ExternalRollbackReceipt(saga_id=saga_id, started=False)


async def _read_executions(ctx: restate.WorkflowSharedContext, saga_id: str, service: str) -> list[ExecutionStatus]:
    """Return the rollbacks of all executions of a saga; two services may share its ID."""
    try:
        rollback = await ObjectClient(cast("restate.Context", ctx), rollback_status, saga_id).call()
    except TerminalError as error:
        if is_own_cancel(error) or error.status_code != NotFound.default_status:
            raise
        return []
    return [each for each in rollback.executions if each.service == service]


def _check_outcome(saga_id: str, outcome: RollbackState, dead_letters: list[str]) -> None:
    if outcome is not RollbackState.ROLLED_BACK:
        raise SagaError(
            f"the rollback of saga '{saga_id}' needs attention: {', '.join(dead_letters)}",
            metadata={"saga": saga_id, "dead_letters": ",".join(dead_letters)},
        )


def _never_completed(ctx: restate.WorkflowSharedContext) -> bool:
    """Return whether the parent knows that this child ended without a result, so that a missing record is expected."""
    return NEVER_COMPLETED_HEADER in ctx.request().headers

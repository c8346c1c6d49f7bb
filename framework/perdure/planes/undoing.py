"""Rolling back a saga from outside its orchestration: a finished child's, or a lost one's."""

from __future__ import annotations

from typing import cast

import restate

from perdure.clients import ObjectClient
from perdure.errors import NotFound, SagaError
from perdure.planes.progress import CLOSED_KEY, Closed, mark_undone_from_outside, read_rollback, read_steps
from perdure.saga.messages import (
    RollbackReport,
    RollbackRequest,
    UndoReceipt,
    UndoRequest,
    begin_target,
)
from perdure.saga.plan import Outcome, SagaConfig
from perdure.signals import AnswerSerde
from perdure.state import ReadOnlyState

_report_serde = AnswerSerde(RollbackReport)


async def roll_back_ended(
    ctx: restate.WorkflowSharedContext, request: UndoRequest, saga_id: str, service: str, config: SagaConfig
) -> UndoReceipt:
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
        SagaError: The rollback needs attention; only when it is waited for. Terminal, 500.
    """
    caller = cast("restate.Context", ctx)
    before = await read_rollback(ctx, saga_id)
    steps = await read_steps(ctx)
    if before is None and not steps:
        if await ReadOnlyState(ctx, CLOSED_KEY, Closed).get() is not None:  # it ended before its first step
            return UndoReceipt(saga_id=saga_id, started=False)
        raise NotFound(
            f"saga '{saga_id}' left no record: it never began, or the retention of its workflow is over",
            metadata={"saga": saga_id},
        )
    await mark_undone_from_outside(ctx)
    receipt = UndoReceipt(saga_id=saga_id, started=before is None)
    awakeable, finished = caller.awakeable(serde=_report_serde) if request.wait else (None, None)
    handed_over = RollbackRequest(
        saga_id=saga_id, service=service, config=config, steps=steps, reason=request.reason, awakeable=awakeable
    )
    await ObjectClient(caller, begin_target, saga_id).send(handed_over)
    if finished is not None:
        report = await finished
        if report.outcome is not Outcome.ROLLED_BACK:
            raise SagaError(
                f"the rollback of saga '{saga_id}' needs attention: {', '.join(report.dead_letters)}",
                metadata={"saga": saga_id, "dead_letters": ",".join(report.dead_letters)},
            )
    return receipt

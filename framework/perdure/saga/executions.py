"""Executions of one saga in one rollback; pure functions.

A workflow key can be reused after its retention, and the rollback then holds the steps of several executions. Each
execution is rolled back and reported independently of the others.
"""

from __future__ import annotations

from perdure.saga.messages import RollbackReport
from perdure.saga.policy import next_steps, offset_steps, rollback_state
from perdure.saga.schema import EarlierExecution, RollbackRequest, StepProgress, StoredSaga
from perdure.saga.status import CompensationState, RollbackState

_WORST_FIRST = (
    RollbackState.RUNNING,
    RollbackState.NEEDS_ATTENTION,
    RollbackState.FINISHED_FORWARD,
    RollbackState.ROLLED_BACK,
)


def executions_of(saga: StoredSaga) -> list[RollbackRequest]:
    """Return the executions of a saga in their order, each with its own steps, config, reason and ID."""
    if not saga.earlier:
        return [saga]
    executions: list[RollbackRequest] = []
    after = 0
    for earlier in saga.earlier:
        steps = [step for step in saga.steps if after < step.position <= earlier.last]
        facts = {field: getattr(earlier, field) for field in ("service", "config", "reason", "execution_ids")}
        executions.append(saga.model_copy(update={**facts, "steps": steps, "earlier": []}))
        after = earlier.last
    earlier_ids = {each for earlier in saga.earlier for each in earlier.execution_ids}
    last = {
        "steps": [step for step in saga.steps if step.position > after],
        "execution_ids": [each for each in saga.execution_ids if each not in earlier_ids],
        "earlier": [],
    }
    return [*executions, saga.model_copy(update=last)]


def append_execution(saga: StoredSaga, request: RollbackRequest) -> tuple[StoredSaga, RollbackRequest]:
    """Return a saga with one more execution, and that execution with its positions in the saga."""
    offset = max((step.position for step in saga.steps), default=0)
    added = request.model_copy(
        update={
            "steps": offset_steps(request.steps, offset),
            "completed": {position + offset: each for position, each in request.completed.items()},
            "running": {position + offset: each for position, each in request.running.items()},
        }
    )
    last = executions_of(saga)[-1]
    earlier = EarlierExecution(
        last=offset, service=last.service, config=last.config, reason=last.reason, execution_ids=last.execution_ids
    )
    combined = {
        "steps": [*saga.steps, *added.steps],
        "execution_ids": [*saga.execution_ids, *added.execution_ids],
        "earlier": [*saga.earlier, earlier],
    }
    return StoredSaga.of(added).model_copy(update=combined), added


def execution_number_at(saga: StoredSaga, position: int) -> int:
    """Return the number of the execution that a step belongs to; 1 for the first."""
    return 1 + sum(earlier.last < position for earlier in saga.earlier)


def number_of(saga: StoredSaga, ids: list[str]) -> int | None:
    """Return the number of the execution with these IDs; None if it is unknown, as without an ID."""
    for number, execution in enumerate(executions_of(saga), start=1):
        if ids and set(ids) <= set(execution.execution_ids):
            return number
    return None


def is_over(execution: RollbackRequest, progress: dict[int, StepProgress]) -> bool:
    """Return whether no compensation of an execution is left to run."""
    return not next_steps(execution.steps, progress, execution.config)


def report_of(executions: list[RollbackRequest], progress: dict[int, StepProgress]) -> RollbackReport:
    """Return the report of one or more executions; its outcome is the worst of theirs."""
    steps = [step for each in reversed(executions) for step in sorted(each.steps, key=lambda step: -step.position)]
    outcomes = [rollback_state(each.steps, progress, each.config) for each in executions]
    return RollbackReport(
        outcome=min(outcomes, key=_WORST_FIRST.index),
        undone=[step.step for step in steps if progress[step.position].state is CompensationState.UNDONE],
        dead_letters=[step.step for step in steps if progress[step.position].state is CompensationState.DEAD_LETTER],
    )

"""The runs of one saga: pure data and pure functions, no engine.

A workflow's key can be used again after its retention, and its rollback then has the steps of several runs. Each is
undone, judged and answered for as if it were alone: what could not be undone of one says nothing about another.
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


def runs_of(saga: StoredSaga) -> list[RollbackRequest]:
    """Return the runs of a saga, the first one first: each with its own steps, settings, reason and ids.

    Args:
        saga: The saga.
    """
    if not saga.earlier:
        return [saga]
    found: list[RollbackRequest] = []
    after = 0
    for run in saga.earlier:
        steps = [step for step in saga.steps if after < step.position <= run.last]
        facts = {field: getattr(run, field) for field in ("service", "config", "reason", "runs")}
        found.append(saga.model_copy(update={**facts, "steps": steps, "earlier": []}))
        after = run.last
    before = {each for run in saga.earlier for each in run.runs}
    last = {
        "steps": [step for step in saga.steps if step.position > after],
        "runs": [each for each in saga.runs if each not in before],
        "earlier": [],
    }
    return [*found, saga.model_copy(update=last)]


def with_another_run(saga: StoredSaga, again: RollbackRequest) -> tuple[StoredSaga, RollbackRequest]:
    """Return a saga with another run behind those it has, and that run alone, with its positions there.

    Args:
        saga: The saga.
        again: The run, whose positions begin with 1.
    """
    offset = max((step.position for step in saga.steps), default=0)
    added = again.model_copy(
        update={
            "steps": offset_steps(again.steps, offset),
            "completed": {position + offset: each for position, each in again.completed.items()},
            "running": {position + offset: each for position, each in again.running.items()},
        }
    )
    until_now = runs_of(saga)[-1]
    earlier = EarlierExecution(
        last=offset,
        service=until_now.service,
        config=until_now.config,
        reason=until_now.reason,
        runs=until_now.runs,
    )
    both = {
        "steps": [*saga.steps, *added.steps],
        "runs": [*saga.runs, *added.runs],
        "earlier": [*saga.earlier, earlier],
    }
    return StoredSaga.of(added).model_copy(update=both), added


def number_at(saga: StoredSaga, position: int) -> int:
    """Return which run has a step: 1 for the first."""
    return 1 + sum(run.last < position for run in saga.earlier)


def number_of(saga: StoredSaga, ids: list[str]) -> int | None:
    """Return which run has these ids; None when that can't be told, as of a request that has none."""
    for number, run in enumerate(runs_of(saga), start=1):
        if ids and set(ids) <= set(run.runs):
            return number
    return None


def is_over(run: RollbackRequest, progress: dict[int, StepProgress]) -> bool:
    """Tell if there is nothing left to try for a run."""
    return not next_steps(run.steps, progress, run.config)


def report_of(runs: list[RollbackRequest], progress: dict[int, StepProgress]) -> RollbackReport:
    """Return how the rollback of some runs stands; of several, as the worst of them does.

    Args:
        runs: The runs, at least one.
        progress: The rollback of each step, by position.
    """
    steps = [step for run in reversed(runs) for step in sorted(run.steps, key=lambda each: -each.position)]
    return RollbackReport(
        outcome=min((rollback_state(run.steps, progress, run.config) for run in runs), key=_WORST_FIRST.index),
        undone=[step.step for step in steps if progress[step.position].state is CompensationState.UNDONE],
        dead_letters=[step.step for step in steps if progress[step.position].state is CompensationState.DEAD_LETTER],
    )

"""The runs of one saga: pure data and pure functions, no engine.

A workflow's key can be used again after its retention, and its rollback then has the steps of several runs. Each is
undone, judged and answered for as if it were alone: what could not be undone of one says nothing about another.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from perdure.saga.messages import RollbackReport, RollbackRequest
from perdure.saga.policy import Outcome, SagaConfig, StepProgress, StepState, moved, next_steps, outcome

_WORST_FIRST = (Outcome.RUNNING, Outcome.NEEDS_ATTENTION, Outcome.FINISHED_FORWARD, Outcome.ROLLED_BACK)


class EarlierExecution(BaseModel):
    """A run of a saga before the last one.

    Args:
        last: The position of its last step; its first comes after the run before it.
        service: The orchestration's service.
        config: How it is rolled back.
        reason: Why it failed.
        runs: Its id; several when an earlier version put runs together.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    last: int
    service: str
    config: SagaConfig = SagaConfig()
    reason: str
    runs: list[str] = []


class StoredSaga(RollbackRequest):
    """A saga as `Rollbacks` keeps it: its last run, but with the steps and the ids of all runs.

    Args:
        earlier: The runs before it. An earlier version kept none: those of its runs stay one.
    """

    earlier: list[EarlierExecution] = Field(default=[])

    @classmethod
    def of(cls, request: RollbackRequest) -> StoredSaga:
        """Return a saga of one run."""
        return cls(**{**dict(request), "waiter": None})


def executions_of(saga: StoredSaga) -> list[RollbackRequest]:
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


def append_execution(saga: StoredSaga, again: RollbackRequest) -> tuple[StoredSaga, RollbackRequest]:
    """Return a saga with another run behind those it has, and that run alone, with its positions there.

    Args:
        saga: The saga.
        again: The run, whose positions begin with 1.
    """
    offset = max((step.position for step in saga.steps), default=0)
    added = again.model_copy(
        update={
            "steps": moved(again.steps, offset),
            "completed": {position + offset: each for position, each in again.completed.items()},
            "running": {position + offset: each for position, each in again.running.items()},
        }
    )
    until_now = executions_of(saga)[-1]
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


def execution_number_at(saga: StoredSaga, position: int) -> int:
    """Return which run has a step: 1 for the first."""
    return 1 + sum(run.last < position for run in saga.earlier)


def number_of(saga: StoredSaga, ids: list[str]) -> int | None:
    """Return which run has these ids; None when that can't be told, as of a request that has none."""
    for number, run in enumerate(executions_of(saga), start=1):
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
        outcome=min((outcome(run.steps, progress, run.config) for run in runs), key=_WORST_FIRST.index),
        undone=[step.step for step in steps if progress[step.position].state is StepState.UNDONE],
        dead_letters=[step.step for step in steps if progress[step.position].state is StepState.DEAD_LETTER],
    )

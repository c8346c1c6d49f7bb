"""What a rollback does next: pure data and pure functions, no engine.

A saga is a list of steps in the order in which they were recorded. Its rollback walks them backwards. Everything that
decides (which step, whether to try again, when to give up, how it ends) is here, so that every prefix of steps, every
failure and every strategy can be tested without a server.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from perdure._runtime.checks import invalid_settings
from perdure._runtime.serdes import compact_json
from perdure.retry import SHORTEST, RetryPolicy

RUN_PREFIX = "saga/run/"
MOST_DOUBTS = 10
"""After how many starts in doubt an attempt counts as failed; at the usual delays that is after eight minutes."""


class CompensationStrategy(StrEnum):
    """What a rollback does with the steps, and with one that can't be undone.

    ``ALL`` goes on with the other steps after a dead letter; ``STOP`` halts there; ``COMPLETED`` skips steps whose
    action never completed; ``BEST_EFFORT`` tries each step and never dead-letters; ``UNTIL_SUCCESS`` ends at the first
    step undone; ``FOREVER`` never gives up.
    """

    ALL = "compensate-all"
    STOP = "compensate-stop"
    COMPLETED = "compensate-completed"
    BEST_EFFORT = "compensate-best-effort"
    UNTIL_SUCCESS = "compensate-until-success"
    FOREVER = "compensate-forever"


class SagaConfig(BaseModel):
    """How a saga is rolled back.

    Args:
        strategy: See `CompensationStrategy`.
        max_attempts: Attempts of one compensation that ended with a terminal error, before the step becomes a dead
            letter.
        initial_delay: Wait before the second attempt.
        max_delay: Longest wait between two attempts; each is twice the one before.
        settle_timeout: How long a step that was running when the saga was cancelled may take to end before it is
            undone. One that runs an orchestration of its own is not undone before it has ended.

    Raises:
        ConfigurationError: A value out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: CompensationStrategy = CompensationStrategy.ALL
    max_attempts: int = Field(default=5, ge=1)
    initial_delay: timedelta = Field(default=timedelta(seconds=1), ge=SHORTEST)
    max_delay: timedelta = Field(default=timedelta(minutes=5), ge=SHORTEST)
    settle_timeout: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, given: Any, check: ModelWrapValidatorHandler[SagaConfig], info: ValidationInfo) -> SagaConfig:
        try:
            return check(given)
        except ValidationError as error:
            if info.mode == "json":  # it came with a message, which is what's wrong then
                raise
            raise invalid_settings(cls.__name__, error) from error

    @property
    def retry(self) -> RetryPolicy:
        """The retry policy of a compensation."""
        return RetryPolicy(
            initial_interval=min(self.initial_delay, self.max_delay),
            max_interval=self.max_delay,
            max_attempts=None if self.strategy is CompensationStrategy.FOREVER else self.max_attempts,
        )


class CompensationHandler(BaseModel):
    """Which handler undoes a step.

    Args:
        service: The service that holds it.
        handler: Its name.
        key: The key, when the service is a workflow: a nested saga is undone by its own service.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    service: str
    handler: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}"


class StepRecord(BaseModel):
    """A step as it was recorded before its action started.

    Args:
        position: 1 for the first step.
        step: The step's name.
        step_id: Equal for equal compensations with equal payloads.
        compensation: The handler that undoes it; None when the step needs none.
        payload: What the compensation is given.
        group: The position of the first step of its parallel group; None for a step on its own.
        pivot: Marks the point after which nothing is undone any more; it is no step itself.
        after_others: Undone only if no other step was left undone, such as the news that nothing is held any more.
        parent: With the first step of a child, the id of the saga that started it; empty when no saga did.
        timed_out: Invocations of attempts that were over their time limit and may act yet, when the orchestration
            itself hands the step over; their end is awaited first. Its state has none of them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # a record of a later version still rolls back

    position: int
    step: str
    step_id: str
    compensation: CompensationHandler | None = None
    payload: JsonValue = None
    group: int | None = None
    pivot: bool = False
    after_others: bool = False
    parent: str = ""
    # Left out where there are none: a replay under this version must write the record as an earlier one wrote it.
    timed_out: list[str] = Field(default=[], exclude_if=lambda ids: not ids)


class StepState(StrEnum):
    """How far the rollback of one step is."""

    PENDING = "pending"
    UNDONE = "undone"
    SKIPPED = "skipped"
    FAILED = "failed"
    DEAD_LETTER = "dead_letter"
    RESOLVED = "resolved"
    DISCARDED = "discarded"


class StepProgress(BaseModel):
    """The rollback of one step.

    Args:
        state: How far it is.
        completed: Whether the action completed; None when that is not known, as after a kill.
        invocation_id: The action's invocation, when it was still running; its end is awaited first.
        attempts: Attempts that failed, since the last redrive.
        drive: How often an operator started the step's rollback anew.
        error: The last failure.
        payload: What the compensation is given instead of what was recorded, when an operator edited it.
        doubts: How often in a row nobody could say whether the compensation was started.
        doubted: The attempt in doubt, see `attempt`; it is asked for until its end is known.
        due: When the next attempt is due; None when nothing was tried yet, or nothing is to be tried again.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: StepState = StepState.PENDING
    completed: bool | None = None
    invocation_id: str | None = None
    attempts: int = 0
    drive: int = 0
    error: str | None = None
    payload: JsonValue = None
    doubts: int = 0
    doubted: str | None = None
    due: datetime | None = None

    @property
    def attempt(self) -> str:
        """What tells the next attempt from the step's others; an equal one finds what was started instead."""
        return self.doubted or f"{self.drive}.{self.attempts}"

    def payload_for(self, step: StepRecord) -> JsonValue:
        """Return what the step's compensation is given: what an operator edited, or what was recorded."""
        return step.payload if self.payload is None else self.payload

    def is_left_undone(self) -> bool:
        """Tell if undoing the step was tried in vain, and is not about to be tried again."""
        exhausted = (StepState.DEAD_LETTER, StepState.FAILED, StepState.DISCARDED)
        return self.state in exhausted or (self.state is StepState.SKIPPED and self.error is not None)

    def with_(self, **changes: Any) -> StepProgress:
        """Return a copy with some facts changed."""
        return self.model_copy(update=changes)


class Outcome(StrEnum):
    """How a rollback stands."""

    RUNNING = "running"
    ROLLED_BACK = "rolled_back"
    FINISHED_FORWARD = "finished_forward"
    NEEDS_ATTENTION = "needs_attention"


def step_id(name: str, payload: bytes) -> str:
    """Return the id of a step: equal for the same name and the same payload.

    Args:
        name: The compensation's name.
        payload: The payload as JSON; the order of its keys does not matter.
    """
    return hashlib.sha256(f"{name}:{compact_json(payload)}".encode()).digest()[:16].hex()


def state_key(position: int) -> str:
    """Return the name of the state entry that holds a step, so that names sort in the order of the steps."""
    return f"saga/{position:06d}"


def run_key(run: str) -> str:
    """Return the name of the state entry that tells of a run that was handed over, and in `Rollbacks` of its arrival.

    The id is in the name, since values may be encrypted, and the reconciler has to compare.
    """
    return f"{RUN_PREFIX}{run}"


def compensation_service(service: str) -> str:
    """Return the name of the generated service that holds a service's compensations."""
    return f"{service}Compensations"


def compensation_handler(name: str) -> str:
    """Return the handler's name of a compensation: a name as the seed has them (``book-flight``) gets underscores."""
    return name.replace("-", "_").replace(".", "_")


def initial_progress(
    steps: list[StepRecord], config: SagaConfig, *, completed: dict[int, bool], running: dict[int, str], reason: str
) -> dict[int, StepProgress]:
    """Return where the rollback of each step begins: at work, or already skipped.

    Past its pivot a saga is not undone; the pivot itself becomes a dead letter, so that somebody finishes it forward.

    Args:
        steps: All recorded steps.
        config: The saga's settings.
        completed: Whether a step's action completed, by position; no entry when that is not known.
        running: Invocations of actions that were still running.
        reason: Why the saga failed.
    """
    past_pivot = any(step.pivot for step in steps)
    progress = {}
    for step in steps:
        known = completed.get(step.position)
        never_completed = config.strategy is CompensationStrategy.COMPLETED and known is False
        if step.pivot:
            state, error = StepState.DEAD_LETTER, f"failed past its pivot, so nothing is undone: {reason}"
        else:
            skip = step.compensation is None or never_completed or past_pivot
            state, error = (StepState.SKIPPED if skip else StepState.PENDING), None
        progress[step.position] = StepProgress(
            state=state, completed=known, invocation_id=running.get(step.position), error=error
        )
    return progress


def moved(steps: list[StepRecord], offset: int) -> list[StepRecord]:
    """Return steps with positions after those that a rollback has already.

    Args:
        steps: Steps whose positions begin with 1.
        offset: The last position that is taken.
    """
    return [
        step.model_copy(
            update={
                "position": step.position + offset,
                "group": None if step.group is None else step.group + offset,
            }
        )
        for step in steps
    ]


def next_steps(steps: list[StepRecord], progress: dict[int, StepProgress], config: SagaConfig) -> list[int]:
    """Return the positions of the steps to undo now, together; empty when there is nothing left to try.

    Args:
        steps: All recorded steps of one run; what became of another run's changes nothing.
        progress: The rollback of each step, by position; it may have those of other runs, too.
        config: The saga's settings.
    """
    own = [progress[step.position] for step in steps]
    states = {item.state for item in own}
    if config.strategy is CompensationStrategy.STOP and StepState.DEAD_LETTER in states:
        return []
    succeeded = config.strategy is CompensationStrategy.UNTIL_SUCCESS and StepState.UNDONE in states
    blocked = any(item.is_left_undone() for item in own)
    pending = [
        step
        for step in steps
        if progress[step.position].state is StepState.PENDING
        and not (step.after_others and blocked)
        and not (succeeded and progress[step.position].drive == 0)  # what an operator redrives is tried all the same
    ]
    if not pending:
        return []
    last = max(pending, key=lambda step: step.position)
    if last.group is None or config.strategy is CompensationStrategy.UNTIL_SUCCESS:
        return [last.position]
    return sorted((step.position for step in pending if step.group == last.group), reverse=True)


def wait_for(positions: list[int], progress: dict[int, StepProgress], now: datetime) -> timedelta:
    """Return how long it is until steps are due that are tried together.

    Args:
        positions: The steps, see `next_steps`.
        progress: The rollback of each step, by position.
        now: The time.
    """
    dues = [due for position in positions if (due := progress[position].due) is not None]
    return max(timedelta(0), max(dues, default=now) - now)


def after_success(progress: StepProgress) -> StepProgress:
    """Return a step's progress after its compensation succeeded."""
    return progress.with_(state=StepState.UNDONE, error=None, doubts=0, doubted=None)


def after_failure(progress: StepProgress, error: str, config: SagaConfig) -> StepProgress:
    """Return a step's progress after its compensation ended with a terminal error.

    Args:
        progress: The step's progress before.
        error: What the compensation said.
        config: The saga's settings.
    """
    attempts = progress.attempts + 1
    failed = progress.with_(attempts=attempts, error=error, doubts=0, doubted=None)
    if config.retry.permits(attempts):
        return failed
    if config.strategy is CompensationStrategy.BEST_EFFORT:
        return failed.with_(state=StepState.FAILED)
    return failed.with_(state=StepState.DEAD_LETTER)


def after_doubt(progress: StepProgress, error: str, config: SagaConfig) -> StepProgress:
    """Return a step's progress after nobody could say whether its compensation was started: who was to start it failed.

    The same attempt is asked for again, which finds what was started. So nothing is undone twice, an operator's redrive
    included, and a restart of the saga service costs no attempt. After a while it counts as one that failed, so that
    somebody is told.

    Args:
        progress: The step's progress before.
        error: What is known.
        config: The saga's settings.
    """
    doubts = progress.doubts + 1
    if doubts < MOST_DOUBTS:
        return progress.with_(doubts=doubts, doubted=progress.attempt)
    return after_failure(progress, error, config).with_(doubted=progress.attempt)


def outcome(steps: list[StepRecord], progress: dict[int, StepProgress], config: SagaConfig) -> Outcome:
    """Return how the rollback of a run stands.

    Args:
        steps: All recorded steps of the run.
        progress: The rollback of each step, by position; it may have those of other runs, too.
        config: The saga's settings.
    """
    if next_steps(steps, progress, config):
        return Outcome.RUNNING
    if any(progress[step.position].state is StepState.DEAD_LETTER for step in steps):
        return Outcome.NEEDS_ATTENTION
    # Past its pivot nothing was undone: somebody has finished the saga by hand.
    return Outcome.FINISHED_FORWARD if any(step.pivot for step in steps) else Outcome.ROLLED_BACK

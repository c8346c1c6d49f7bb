"""Rules of a rollback: which step is next, when it is tried again, how it ends. Pure functions without an engine.

A rollback compensates the steps of a saga in reverse order of their recording.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import JsonValue

from perdure._runtime.serdes import compact_json
from perdure._runtime.time_scale import time_scale
from perdure.errors import Conflict
from perdure.retry import RetryPolicy
from perdure.saga.config import CompensationStrategy, SagaConfig
from perdure.saga.schema import OperatorAction, StepProgress, StepRecord
from perdure.saga.status import CompensationState, RollbackState

_STATE_AFTER = {
    OperatorAction.SKIP: CompensationState.SKIPPED,
    OperatorAction.RESOLVE: CompensationState.RESOLVED,
    OperatorAction.DISCARD: CompensationState.DISCARDED,
}
_SHORTEST_CHECK: Final = timedelta(seconds=1)
_LONGEST_CHECK: Final = timedelta(minutes=1)
_ENDED_ATTEMPT: Final[dict[str, Any]] = {
    "trying_since": None,
    "lost_starts": 0,
    "unresolved_attempt": None,
    "compensation_invocation_id": None,
}
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\b\w*\d\w*\b")


def step_id(name: str, payload: bytes) -> str:
    """Return the ID of a step: equal for the same name and the same JSON payload, in any order of its keys."""
    return hashlib.sha256(f"{name}:{compact_json(payload)}".encode()).digest()[:16].hex()


def compensation_service(service: str) -> str:
    """Return the name of the generated service that holds a service's compensations."""
    return f"{service}Compensations"


def compensation_handler(name: str) -> str:
    """Return the handler name of a compensation: ``-`` and ``.`` become ``_``."""
    return name.replace("-", "_").replace(".", "_")


def initial_progress(
    steps: list[StepRecord], config: SagaConfig, *, completed: dict[int, bool], running: dict[int, str], reason: str
) -> dict[int, StepProgress]:
    """Return the initial progress of each step: pending or skipped.

    A saga past its pivot is not compensated. The pivot becomes a dead letter, so that an operator completes the saga.

    Args:
        steps: All recorded steps.
        config: The rollback settings.
        completed: Whether a step's action completed, by position; no entry if unknown.
        running: Invocations of actions that were still running, by position.
        reason: The error that failed the saga.
    """
    past_pivot = any(step.pivot for step in steps)
    progress = {}
    for step in steps:
        known = completed.get(step.position)
        never_completed = config.strategy is CompensationStrategy.COMPLETED and known is False
        if step.pivot:
            state, error = CompensationState.DEAD_LETTER, f"failed past its pivot, so no step is compensated: {reason}"
        else:
            skip = step.compensation is None or never_completed or past_pivot
            state, error = (CompensationState.SKIPPED if skip else CompensationState.PENDING), None
        progress[step.position] = StepProgress(
            state=state, completed=known, invocation_id=running.get(step.position), error=error
        )
    return progress


def next_steps(steps: list[StepRecord], progress: dict[int, StepProgress], config: SagaConfig) -> list[int]:
    """Return the positions of the steps to compensate next, together; empty if none is left to try.

    Args:
        steps: All recorded steps.
        progress: The progress by position.
        config: The rollback settings.
    """
    own = [progress[step.position] for step in steps]
    states = {item.state for item in own}
    if config.strategy is CompensationStrategy.STOP and CompensationState.DEAD_LETTER in states:
        return []
    succeeded = config.strategy is CompensationStrategy.UNTIL_SUCCESS and CompensationState.UNDONE in states
    blocked = any(item.is_left_undone() for item in own)
    pending = [
        step
        for step in steps
        if progress[step.position].state is CompensationState.PENDING
        and not (step.after_others and blocked)
        and not (succeeded and progress[step.position].redriven == 0)  # a redriven step runs regardless
    ]
    if not pending:
        return []
    last = max(pending, key=lambda step: step.position)
    if last.group is None or config.strategy is CompensationStrategy.UNTIL_SUCCESS:
        return [last.position]
    return sorted((step.position for step in pending if step.group == last.group), reverse=True)


def after_success(progress: StepProgress) -> StepProgress:
    """Return the progress after a successful compensation."""
    return progress.with_(state=CompensationState.UNDONE, error=None, **_ENDED_ATTEMPT)


def after_failure(progress: StepProgress, error: str, config: SagaConfig) -> StepProgress:
    """Return the progress after a compensation that ended with a terminal error."""
    refusals = progress.refusals + 1
    failed = progress.with_(attempts=progress.attempts + 1, refusals=refusals, error=error, **_ENDED_ATTEMPT)
    return failed if config.retry.permits(refusals) else _exhausted(failed, config)


def after_transient_failure(
    progress: StepProgress, error: str, retry: RetryPolicy, config: SagaConfig, now: datetime
) -> StepProgress:
    """Return the progress after a compensation that ended with a transient error.

    Args:
        progress: The progress before; `StepProgress.trying_since` is set.
        error: The error.
        retry: The retry policy of the step, see `SagaConfig.transient_retry_of`.
        config: The rollback settings.
        now: The current time.
    """
    since = progress.trying_since
    failed = progress.with_(attempts=progress.attempts + 1, error=error, **{**_ENDED_ATTEMPT, "trying_since": since})
    return failed if _permits(retry, failed, now) else _exhausted(failed, config)


def after_unknown_outcome(
    progress: StepProgress, error: str, retry: RetryPolicy, config: SagaConfig, now: datetime
) -> StepProgress:
    """Return the progress after an attempt that may or may not have been started; see `after_transient_failure`.

    The attempt is repeated under the same idempotency key, which attaches to a started compensation. A redrive does the
    same, so no step is compensated twice, and a restart of the saga service uses up no attempt.
    """
    lost = progress.with_(lost_starts=progress.lost_starts + 1, unresolved_attempt=progress.attempt, error=error)
    return lost if _permits(retry, lost, now) else _exhausted(lost, config)


def delay_after(progress: StepProgress, retry: RetryPolicy, config: SagaConfig) -> timedelta:
    """Return the delay before the next attempt of a step that failed and is pending."""
    if progress.lost_starts:
        return retry.delay_after(progress.lost_starts)
    if progress.trying_since is None:
        return config.retry.delay_after(progress.refusals)
    return retry.delay_after(progress.attempts - progress.refusals)


def delay_while_running(progress: StepProgress, now: datetime) -> timedelta:
    """Return the delay before a running attempt is checked again. It grows with the attempt's duration."""
    elapsed = timedelta(0) if progress.trying_since is None else now - progress.trying_since
    return min(_LONGEST_CHECK, max(_SHORTEST_CHECK, elapsed / 4))


def _permits(retry: RetryPolicy, progress: StepProgress, now: datetime) -> bool:
    elapsed = timedelta(0) if progress.trying_since is None else now - progress.trying_since
    return retry.permits(progress.attempts - progress.refusals + progress.lost_starts, elapsed * time_scale())


def _exhausted(progress: StepProgress, config: SagaConfig) -> StepProgress:
    best_effort = config.strategy is CompensationStrategy.BEST_EFFORT
    return progress.with_(state=CompensationState.FAILED if best_effort else CompensationState.DEAD_LETTER)


def rollback_state(steps: list[StepRecord], progress: dict[int, StepProgress], config: SagaConfig) -> RollbackState:
    """Return the state of a rollback; see `next_steps` for the arguments."""
    if next_steps(steps, progress, config):
        return RollbackState.RUNNING
    if any(progress[step.position].state is CompensationState.DEAD_LETTER for step in steps):
        return RollbackState.NEEDS_ATTENTION
    return RollbackState.FINISHED_FORWARD if any(step.pivot for step in steps) else RollbackState.ROLLED_BACK


def apply_action(progress: StepProgress, action: OperatorAction, step: str, payload: JsonValue = None) -> StepProgress:
    """Return the progress of a step after an operator action.

    Args:
        progress: The progress before.
        action: The action.
        step: The step's name, for the error.
        payload: The new payload of a redrive; None keeps the current one.

    Raises:
        Conflict: The step is neither a dead letter nor waits for its next attempt, or an action other than redrive has
            a payload.
    """
    if payload is not None and action is not OperatorAction.REDRIVE:
        raise Conflict(f"{action} takes no payload; only redrive does", metadata={"field": "payload"})
    if action is OperatorAction.ANNOTATE:
        return progress
    if progress.state is not CompensationState.DEAD_LETTER and not progress.is_waiting:
        raise Conflict(
            f"cannot {action} step '{step}': it is {progress.state}, not a dead letter; "
            "perdure sagas show SAGA shows its history",
            metadata={"state": progress.state.value},
        )
    if action is OperatorAction.REDRIVE:
        new = progress.payload if payload is None else payload
        return progress.with_(
            state=CompensationState.PENDING,
            attempts=0,
            refusals=0,
            lost_starts=0,
            trying_since=None,
            next_attempt_at=None,
            redriven=progress.redriven + 1,
            payload=new,
        )
    return progress.with_(state=_STATE_AFTER[action], next_attempt_at=None)


def error_signature(error: str) -> str:
    """Return an error message without quoted values, IDs and numbers, for grouping."""
    return _VARIABLE.sub("*", error)[:200]

"""Messages and targets of rollbacks and dead letters."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from perdure._runtime.plain_text import Reason
from perdure._runtime.records import StoredRecord
from perdure.saga.schema import ROLLBACKS, AuditEntry, CompensationHandler, OperatorAction, RollbackRequest
from perdure.saga.status import CompensationState, RollbackState
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import UserName
from perdure.targets import KeyedTarget

FAILURE_KEY: Final = "compensation_failure"
"""Metadata of the error of a compensation, a `CompensationFailure`. An error of the engine has none."""


class CompensationFailure(StrEnum):
    """Kind of the error that a compensation ended with.

    ``TERMINAL``: the handler raised it. ``EXHAUSTED``: all attempts of a run failed, here or in a called handler.
    """

    TERMINAL = "terminal"
    EXHAUSTED = "exhausted"


NEVER_COMPLETED_HEADER = "x-perdure-never-completed"
"""Header of a compensation whose action is known to have ended without a result."""


class RollbackReport(BaseModel):
    """Result of a rollback.

    Args:
        outcome: The state of the rollback.
        undone: Names of the compensated steps, in the order of compensation.
        dead_letters: Names of the steps whose compensation failed permanently.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    outcome: RollbackState
    undone: list[str] = []
    dead_letters: list[str] = []


class ReportQuery(BaseModel):
    """Query for the result of a rollback.

    Args:
        wait: Random ID, repeated in the answer.
        service: The orchestrator's service.
        execution_ids: Execution IDs; empty for all executions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wait: str
    service: str
    execution_ids: list[str] = []


class ReportAnswer(BaseModel):
    """Answer to a `ReportQuery`.

    Args:
        wait: The query's ID; an answer with another ID is forged.
        report: The result; None while the rollback runs.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    wait: str
    report: RollbackReport | None = None


class ExternalRollbackRequest(BaseModel):
    """Request to a control-plane service to roll back one of its sagas, finished or orphaned.

    Args:
        reason: Why.
        wait: Whether to wait for the end of the rollback, and to fail if it needs attention.
        parent: The parent saga if it is the caller; a parent rolls back only children that it started.
        failed_children: Handlers that roll back children known to have ended without a result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    wait: bool = True
    parent: str | None = None
    failed_children: list[CompensationHandler] = []


class ExternalRollbackReceipt(BaseModel):
    """Answer to an `ExternalRollbackRequest`.

    Args:
        saga_id: The saga.
        started: False if the rollback had started before.
    """

    saga_id: str
    started: bool


class RollbackPass(BaseModel):
    """One pass of a rollback.

    Args:
        generation: The pass number; a pass that is not the current one does nothing.
        request: The saga, in its first pass.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int = 0
    request: RollbackRequest | None = None


class StepStatus(BaseModel):
    """Status of one step of a rollback.

    Args:
        position: The step.
        step: Its name.
        compensation: The compensation; None if the step needs none.
        payload: The payload of the compensation.
        state: State of the compensation.
        completed: Whether the action completed; None if unknown.
        attempts: Failed attempts of the compensation since the last redrive.
        refusals: Those of the attempts that ended with a terminal error; a few of them make a dead letter.
        lost_starts: Consecutive starts of the next attempt that failed because a process was lost.
        redriven: Number of redrives.
        error: The last error.
        next_attempt_at: When the next attempt is due; in the past while it runs; None if no attempt follows.
        trying_since: Start of the attempts that transient errors are counted from.
        invocation_id: The action's invocation if it was still running.
        compensation_invocation_id: The invocation of an attempt that takes long.
    """

    position: int
    step: str
    compensation: str | None
    payload: Any
    state: CompensationState
    completed: bool | None
    attempts: int
    refusals: int = 0
    lost_starts: int = 0
    redriven: int
    error: str | None
    next_attempt_at: datetime | None = None
    trying_since: datetime | None = None
    invocation_id: str | None
    compensation_invocation_id: str | None = None

    @property
    def is_retried(self) -> bool:
        """Whether the compensation has failed and is tried again."""
        return self.state is CompensationState.PENDING and self.next_attempt_at is not None


class ExecutionStatus(BaseModel):
    """Status of the rollback of one execution."""

    service: str
    status: RollbackState
    strategy: str
    reason: str
    steps: list[StepStatus]
    execution_ids: list[str] = []


class RollbackStatus(ExecutionStatus):
    """Status of a rollback: that of the last execution, with the IDs, audit log and times of all executions.

    Args:
        earlier: The earlier executions under the same key, oldest first.
    """

    saga_id: str
    started_at: datetime
    updated_at: datetime
    earlier: list[ExecutionStatus] = []
    audit_log: list[AuditEntry] = []

    def has(self, execution_ids: Collection[str]) -> bool:
        """Return whether the rollback contains these executions."""
        return set(execution_ids) <= set(self.execution_ids)

    @property
    def all_steps(self) -> list[StepStatus]:
        """The steps of all executions, in order."""
        return [step for each in (*self.earlier, self) for step in each.steps]

    def audit_log_of(self, position: int) -> list[AuditEntry]:
        """Return the audit entries of one step."""
        return [each for each in self.audit_log if each.position == position]


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepAction(_Input):
    """Operator action on a step, as `Rollbacks` receives it.

    Args:
        position: The step.
        action: The action.
        actor: The operator.
        reason: Why.
        payload: The new payload of a redrive; None keeps the current one.
        signed_action: The operator's signed action.
    """

    position: int
    action: OperatorAction
    actor: UserName
    reason: Reason = ""
    payload: JsonValue = None
    signed_action: SignedAction | None = None


class ActionReceipt(BaseModel):
    """Result of an operator action.

    Args:
        id: The dead letter.
        action: The action.
        state: The step's state after it.
        number: The number of the audit entry.
    """

    id: str
    action: OperatorAction
    state: CompensationState
    number: int


class DeadLetter(StoredRecord):
    """A step whose compensation failed permanently and that needs an operator action.

    Args:
        id: ``{saga}/{position}``.
        saga_id: The saga.
        service: The saga's service.
        step: The step's name.
        position: The step's position.
        compensation: The failed handler.
        payload: Its payload.
        error: Its last error.
        signature: The error without values that vary; dead letters are grouped by it.
        reason: The error that failed the saga.
        attempts: Attempts since the last redrive.
        redriven: Number of redrives.
        since: When it became a dead letter.
    """

    id: str
    saga_id: str
    service: str
    step: str
    position: int
    compensation: str
    payload: JsonValue = None
    error: str
    signature: str
    reason: str
    attempts: int
    redriven: int = 0
    since: datetime


def letter_of(rollback: RollbackStatus, letter_id: str) -> DeadLetter | None:
    """Return the content of a step that waits for its next attempt, as that of a dead letter to sign; None if none."""
    for step in rollback.all_steps:
        if f"{rollback.saga_id}/{step.position}" == letter_id and step.is_retried and step.next_attempt_at is not None:
            return DeadLetter(
                id=letter_id,
                saga_id=rollback.saga_id,
                service=rollback.service,
                step=step.step,
                position=step.position,
                compensation=step.compensation or "",
                payload=step.payload,
                error=step.error or "",
                signature="",
                reason=rollback.reason,
                attempts=step.attempts,
                redriven=step.redriven,
                since=step.trying_since or step.next_attempt_at,
            )
    return None


class DeadLetterFilter(_Input):
    """Filter of dead letters; all given fields must match.

    Args:
        saga_id: The saga.
        service: The saga's service.
        step: The step's name.
        signature: The error signature.
    """

    saga_id: str | None = None
    service: str | None = None
    step: str | None = None
    signature: str | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter matches."""
        wanted = self.model_dump(include={"saga_id", "service", "step", "signature"}, exclude_none=True)
        return all(getattr(letter, field) == value for field, value in wanted.items())


class DeadLetterListRequest(DeadLetterFilter):
    """Request for one page of dead letters.

    Args:
        page: 1 for the first page.
        page_size: Items per page.
    """

    page: int = Field(default=1, ge=1)
    page_size: int = Field(default=50, ge=1, le=500)


class DeadLetterGroup(BaseModel):
    """Number of dead letters with the same error signature."""

    signature: str
    count: int


class DeadLetterPage(BaseModel):
    """One page of dead letters, oldest first.

    Args:
        items: The dead letters of this page.
        total: Number of matches.
        page: Number of this page.
        pages: Number of pages.
        groups: All matches by error signature, largest group first.
    """

    items: list[DeadLetter]
    total: int
    page: int
    pages: int
    groups: list[DeadLetterGroup]


class DeadLetterActionRequest(_Input):
    """Operator action on one dead letter.

    Args:
        id: The dead letter.
        actor: The operator.
        reason: Why.
        payload: The new payload of a redrive; None keeps the current one.
        signed_action: The operator's signed action, where actions must be signed; see `sign_action`.
        wait: With a redrive: wait up to five minutes for the end of the compensation.
    """

    id: str
    actor: UserName
    reason: Reason = ""
    payload: JsonValue = None
    signed_action: SignedAction | None = None
    wait: bool = False


class BulkActionRequest(_Input):
    """Operator action on all dead letters that match a filter.

    Args:
        action: The action.
        actor: The operator.
        reason: Why.
        filter: The dead letters; at least one field is required.
        signed_actions: The operator's signed actions by dead letter ID. Where actions must be signed, dead letters
            without one are refused: they appeared after the operator looked.
    """

    action: OperatorAction
    actor: UserName
    reason: Reason = ""
    filter: DeadLetterFilter
    signed_actions: dict[str, SignedAction] = Field(default={}, max_length=1000)


class BulkActionReceipt(BaseModel):
    """Result of a bulk action.

    Args:
        done: IDs of the dead letters that the action was applied to.
        refused: Errors by ID of the others.
    """

    done: list[str]
    refused: dict[str, str]


def roll_back_handler(service: str, key: str) -> CompensationHandler:
    """Return the handler by which a service rolls back one of its sagas."""
    return CompensationHandler(service=service, handler="roll_back", key=key)


begin_target: KeyedTarget[RollbackRequest, None] = KeyedTarget(ROLLBACKS, "begin", RollbackRequest, None)
read_report: KeyedTarget[ReportQuery, ReportAnswer] = KeyedTarget(ROLLBACKS, "report", ReportQuery, ReportAnswer)
rollback_status: KeyedTarget[None, RollbackStatus] = KeyedTarget(ROLLBACKS, "status", None, RollbackStatus)
apply_to_step: KeyedTarget[StepAction, ActionReceipt] = KeyedTarget(ROLLBACKS, "apply", StepAction, ActionReceipt)

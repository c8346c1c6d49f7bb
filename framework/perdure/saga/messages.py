"""Messages and targets of rollbacks and dead letters."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from perdure._runtime.plain_text import Reason
from perdure._runtime.records import StoredRecord
from perdure.saga.schema import (
    EXECUTION_ROLLBACKS,
    ROLLBACKS,
    AuditEntry,
    CompensationHandler,
    CompensationProgress,
    OperatorAction,
    RollbackRequest,
    letter_id,
)
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


class ReportAnswer(BaseModel):
    """Answer to the query of a waiter for the result.

    Args:
        wait: The waiter's random ID; an answer with another ID is forged.
        is_recorded: Whether the rollback has recorded its steps, so that a repeated request needs none.
        report: The result; None while the rollback runs.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    wait: str
    is_recorded: bool = False
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
        request: The execution, in its first pass.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int = 0
    request: RollbackRequest | None = None


class StepStatus(CompensationProgress):
    """Status of one step of a rollback.

    Args:
        position: The step.
        step: Its name.
        compensation: The compensation; None if the step needs none.
    """

    position: int
    step: str
    compensation: str | None = None


class ExecutionStatus(BaseModel):
    """Status of the rollback of one execution."""

    saga_id: str
    execution: str
    number: int = 1
    service: str
    status: RollbackState
    strategy: str
    reason: str
    steps: list[StepStatus]
    started_at: datetime
    updated_at: datetime
    audit_log: list[AuditEntry] = []

    def letter_id(self, position: int) -> str:
        """Return the ID of a step's dead letter."""
        return letter_id(self.saga_id, self.number, position)


class RollbackStatus(ExecutionStatus):
    """Status of a saga's rollback: that of its last execution, and those of the earlier ones.

    Args:
        earlier: The earlier executions under the same key, oldest first.
    """

    earlier: list[ExecutionStatus] = []

    @property
    def executions(self) -> list[ExecutionStatus]:
        """All executions, oldest first."""
        return [*self.earlier, self]

    def step_of(self, letter: str) -> tuple[ExecutionStatus, StepStatus] | None:
        """Return the execution and the step that a dead letter's ID names."""
        for each in self.executions:
            for step in each.steps:
                if each.letter_id(step.position) == letter:
                    return each, step
        return None

    def audit_log_of(self, letter: str) -> list[AuditEntry]:
        """Return the audit entries of the step that a dead letter's ID names."""
        return [
            entry for each in self.executions for entry in each.audit_log if each.letter_id(entry.position) == letter
        ]


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepAction(_Input):
    """Operator action on a step, as `Rollbacks` receives it.

    Args:
        number: The number of the execution, see `RollbackRequest`.
        position: The step.
        action: The action.
        actor: The operator.
        reason: Why.
        payload: The new payload of a redrive; None keeps the current one.
        signed_action: The operator's signed action.
    """

    number: int = 1
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
        id: ``{saga}/{position}``, or ``{saga}/{number}.{position}`` for a later execution of the saga.
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


def letter_of(rollback: RollbackStatus, letter: str) -> DeadLetter | None:
    """Return the content of a step that waits for its next attempt, as that of a dead letter to sign; None if none."""
    found = rollback.step_of(letter)
    if found is None:
        return None
    execution, step = found
    if not step.is_retried or step.next_attempt_at is None:
        return None
    return DeadLetter(
        id=letter,
        saga_id=execution.saga_id,
        service=execution.service,
        step=step.step,
        position=step.position,
        compensation=step.compensation or "",
        payload=step.payload,
        error=step.error or "",
        signature="",
        reason=execution.reason,
        attempts=step.attempts,
        redriven=step.redriven,
        since=step.trying_since or step.next_attempt_at,
    )


MAX_PAGE: Final = 100
"""Largest number of dead letters in an answer, and in one batch of an action."""

_MAX_OFFSET: Final = 5_000

Cursor = Annotated[str, StringConstraints(min_length=1, max_length=8_000)]


class DeadLetterFilter(_Input):
    """Filter of dead letters; all given fields must match.

    Args:
        id: The dead letter.
        saga_id: The saga.
        service: The saga's service.
        step: The step's name.
        signature: The error signature.
    """

    id: str | None = None
    saga_id: str | None = None
    service: str | None = None
    step: str | None = None
    signature: str | None = None


class DeadLetterListRequest(DeadLetterFilter):
    """Request for one page of dead letters.

    Args:
        page: 1 for the first page. It reaches the first 5,000 dead letters; ``after`` reaches all.
        page_size: Items per page; an answer has at most 100.
        after: Cursor: ``next`` of the previous page, instead of ``page``.
        until: Cursor of the last dead letter to list, such as ``end`` of the first page.
    """

    page: int = Field(default=1, ge=1)
    page_size: int = Field(default=50, ge=1, le=500)
    after: Cursor | None = None
    until: Cursor | None = None

    @property
    def limit(self) -> int:
        """Items per page."""
        return min(self.page_size, MAX_PAGE)

    @property
    def offset(self) -> int:
        """Number of dead letters before the page, in addition to those up to ``after``."""
        return (self.page - 1) * self.limit

    @model_validator(mode="after")
    def _check_page(self) -> Self:
        if self.after is not None and self.page > 1:
            raise ValueError("page and after exclude each other")
        if self.offset >= _MAX_OFFSET:
            raise ValueError(f"page: only the first {_MAX_OFFSET:,} dead letters have page numbers; use after")
        return self


class DeadLetterGroup(BaseModel):
    """Dead letters with the same error signature.

    Args:
        signature: The signature.
        count: Their number.
        digest: Changes when a dead letter of the group is added, removed or redriven.
    """

    signature: str
    count: int
    digest: str = ""


class UnreadableDeadLetter(BaseModel):
    """A dead letter whose content cannot be read, for example because its encryption key is missing.

    Args:
        id: The dead letter.
        saga_id: The saga.
        service: The saga's service.
        since: When it became a dead letter.
        error: Why it cannot be read, and what to do.
    """

    id: str
    saga_id: str
    service: str
    since: datetime
    error: str


class DeadLetterPage(BaseModel):
    """One page of dead letters, oldest first.

    A page has fewer items than requested where their payloads are large; ``next`` continues after the last one.

    Args:
        items: The dead letters of this page.
        unreadable: Those of this page that cannot be read.
        total: Number of matches.
        page: Number of this page.
        pages: Number of pages.
        groups: The largest 100 groups of matches by error signature, largest first.
        group_count: Number of groups.
        digest: Changes when a match is added, removed or redriven.
        next: Cursor of the next page; None on the last one.
        remaining: Number of dead letters after this page.
        end: Cursor of the newest match; None if nothing matches.
    """

    items: list[DeadLetter]
    unreadable: list[UnreadableDeadLetter] = []
    total: int
    page: int
    pages: int
    groups: list[DeadLetterGroup]
    group_count: int = 0
    digest: str = ""
    next: str | None = None
    remaining: int = 0
    end: str | None = None


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
    """Operator action on a batch of at most 100 of the dead letters that match a filter, oldest first.

    To continue with the next batch, repeat the request with ``next`` of the receipt as ``after``, and its ``until``.

    Args:
        action: The action.
        actor: The operator.
        reason: Why.
        filter: The dead letters; at least one field is required.
        signed_actions: The operator's signed actions by dead letter ID. Where actions must be signed, dead letters
            without one are refused: they appeared after the operator looked.
        after: Cursor of the last dead letter before the batch.
        until: Cursor of the last dead letter to act on; by default that of the newest match, so that dead letters that
            appear between two batches are left alone.
    """

    action: OperatorAction
    actor: UserName
    reason: Reason = ""
    filter: DeadLetterFilter
    signed_actions: dict[str, SignedAction] = Field(default={}, max_length=MAX_PAGE)
    after: Cursor | None = None
    until: Cursor | None = None


class BulkActionReceipt(BaseModel):
    """Result of one batch of a bulk action.

    Args:
        done: IDs of the dead letters that the action was applied to.
        refused: Errors by ID of the others.
        next: Cursor of the next batch; None after the last one.
        until: Cursor of the last dead letter to act on.
        remaining: Number of dead letters after this batch.
    """

    done: list[str]
    refused: dict[str, str]
    next: str | None = None
    until: str | None = None
    remaining: int = 0


def roll_back_handler(service: str, key: str) -> CompensationHandler:
    """Return the handler by which a service rolls back one of its sagas."""
    return CompensationHandler(service=service, handler="roll_back", key=key)


begin_target: KeyedTarget[RollbackRequest, None] = KeyedTarget(ROLLBACKS, "begin", RollbackRequest, None)
rollback_status: KeyedTarget[None, RollbackStatus] = KeyedTarget(ROLLBACKS, "status", None, RollbackStatus)
apply_to_step: KeyedTarget[StepAction, ActionReceipt] = KeyedTarget(ROLLBACKS, "apply", StepAction, ActionReceipt)
execution_status: KeyedTarget[None, ExecutionStatus] = KeyedTarget(EXECUTION_ROLLBACKS, "status", None, ExecutionStatus)
read_report: KeyedTarget[str, ReportAnswer] = KeyedTarget(EXECUTION_ROLLBACKS, "report", str, ReportAnswer)

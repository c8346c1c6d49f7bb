"""Messages and targets of rollbacks and dead letters."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from perdure._runtime.plain_text import Reason
from perdure.saga.schema import ROLLBACKS, AuditEntry, CompensationHandler, OperatorAction, RollbackRequest
from perdure.saga.status import CompensationState, RollbackState
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import UserName
from perdure.targets import KeyedTarget

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
        runs: Execution IDs; empty for all executions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wait: str
    service: str
    runs: list[str] = []


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
    """Status of one step of a rollback."""

    position: int
    step: str
    compensation: str | None
    payload: Any
    state: CompensationState
    completed: bool | None
    attempts: int
    redriven: int
    error: str | None
    invocation_id: str | None


class ExecutionStatus(BaseModel):
    """Status of the rollback of one execution."""

    service: str
    status: RollbackState
    strategy: str
    reason: str
    steps: list[StepStatus]
    runs: list[str] = []


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

    def has(self, runs: Collection[str]) -> bool:
        """Return whether the rollback contains these executions."""
        return set(runs) <= set(self.runs)

    @property
    def all_steps(self) -> list[StepStatus]:
        """The steps of all executions, in order."""
        return [step for run in (*self.earlier, self) for step in run.steps]

    def audit_log_of(self, position: int) -> list[AuditEntry]:
        """Return the audit entries of one step."""
        return [each for each in self.audit_log if each.position == position]


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepAction(_Input):
    """Operator action on a step, as `Rollbacks` receives it.

    Args:
        position: The step.
        act: The action.
        actor: The operator.
        reason: Why.
        payload: The new payload of a redrive; None keeps the current one.
        proof: The operator's signature.
    """

    position: int
    act: OperatorAction
    actor: UserName
    reason: Reason = ""
    payload: JsonValue = None
    proof: SignedAction | None = None


class ActionReceipt(BaseModel):
    """Result of an operator action.

    Args:
        id: The dead letter.
        act: The action.
        state: The step's state after it.
        number: The number of the audit entry.
    """

    id: str
    act: OperatorAction
    state: CompensationState
    number: int


class DeadLetter(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="ignore")

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
        proof: The operator's signature (`perdure.saga.signatures.sign_action`), where actions must be signed.
        wait: With a redrive: wait up to five minutes for the end of the compensation.
    """

    id: str
    actor: UserName
    reason: Reason = ""
    payload: JsonValue = None
    proof: SignedAction | None = None
    wait: bool = False


class BulkActionRequest(_Input):
    """Operator action on all dead letters that match a filter.

    Args:
        act: The action.
        actor: The operator.
        reason: Why.
        filter: The dead letters; at least one field is required.
        proofs: The operator's signatures by dead letter ID. Where actions must be signed, dead letters without a
            signature are refused: they appeared after the operator looked.
    """

    act: OperatorAction
    actor: UserName
    reason: Reason = ""
    filter: DeadLetterFilter
    proofs: dict[str, SignedAction] = Field(default={}, max_length=1000)


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
act_on_step: KeyedTarget[StepAction, ActionReceipt] = KeyedTarget(ROLLBACKS, "act", StepAction, ActionReceipt)

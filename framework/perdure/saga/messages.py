"""What goes to and from rollbacks and dead letters, and the targets that take it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from perdure._runtime.plain_text import Reason
from perdure.saga.operator_actions import Act
from perdure.saga.policy import CompensationHandler, Outcome, SagaConfig, StepRecord, StepState
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import UserName
from perdure.targets import Target

NEVER_COMPLETED_HEADER = "x-perdure-never-completed"
"""Sent along with a compensation whose action is known to have ended without a result."""


class Waiter(BaseModel):
    """An invocation that waits for the end of a rollback.

    Args:
        invocation: Its id.
        awakeable: Wakes it. It carries no data: anybody may complete it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    invocation: str
    awakeable: str


class RollbackRequest(BaseModel):
    """A saga to roll back, as its orchestrator knows it.

    Args:
        saga_id: The saga; the object's key.
        service: The orchestrator's service.
        config: How to roll back.
        steps: All recorded steps.
        completed: Whether a step's action completed, by position; no entry when that is not known, as after a kill.
        running: Invocations of actions that were still running, by position; their end is awaited first.
        reason: Why; the original error.
        waiter: The invocation that waits for the outcome.
        first_hand: Sent by the failed orchestration itself, which does so once; not by whoever found its record.
        runs: Ids of the runs whose steps these are, see `perdure.saga.submission`; empty when that is not known. A
            workflow's key can be used again after its retention, and the rollback's key is the same then.
        trace: A span of the orchestration (W3C traceparent), which the rollback's spans are linked to.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    saga_id: str
    service: str
    config: SagaConfig = SagaConfig()
    steps: list[StepRecord]
    completed: dict[int, bool] = {}
    running: dict[int, str] = {}
    reason: str
    waiter: Waiter | None = None
    first_hand: bool = False
    runs: list[str] = []
    trace: str | None = None


class RollbackReport(BaseModel):
    """How a rollback ended.

    Args:
        outcome: Rolled back, or in need of attention.
        undone: Names of the steps that were undone, in the order of undoing.
        dead_letters: Names of the steps that could not be undone.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    outcome: Outcome
    undone: list[str] = []
    dead_letters: list[str] = []


class ReportQuery(BaseModel):
    """Asks how a rollback ended.

    Args:
        wait: Random id, which the answer carries, too.
        service: The orchestrator's service.
        runs: Ids of the executions; empty for all that the rollback has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wait: str
    service: str
    runs: list[str] = []


class ReportAnswer(BaseModel):
    """Tells how a rollback ended.

    Args:
        wait: The id in the query. An answer with another id is forged.
        report: How it ended; None while it runs.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    wait: str
    report: RollbackReport | None = None


class ExternalRollbackRequest(BaseModel):
    """Asks a control-plane service to roll back one of its sagas, finished or lost.

    Args:
        reason: Why.
        wait: Whether to wait for the end of the rollback, and to fail if it needs attention.
        failed_children: Handlers that roll back children of which the engine knows that they ended without a result.
        parent: The saga that has it as its child, and may undo only what it started itself; None for everybody else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    wait: bool = True
    parent: str | None = None
    failed_children: list[CompensationHandler] = []


class ExternalRollbackReceipt(BaseModel):
    """What became of a request to roll back.

    Args:
        saga_id: The saga.
        started: False when its rollback had begun before.
    """

    saga_id: str
    started: bool


class Pass(BaseModel):
    """One pass over a rollback.

    Args:
        generation: Which one; another than the current does nothing.
        request: The saga, with the first pass.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int = 0
    request: RollbackRequest | None = None


class AuditEntry(BaseModel):
    """One operator's act on a rollback. Entries are only ever added.

    Args:
        number: 1 for the first.
        at: When.
        actor: Who.
        act: What.
        step: On which step.
        position: The step's position; 0 in an audit log of an earlier version.
        reason: Why.
        before: The step's state before.
        after: The step's state after.
        payload: The new payload, when the act replaced it.
        proof: The actor's signature; None when the act was taken unsigned, and the actor only said who they are.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: int
    at: datetime
    actor: str
    act: Act
    step: str
    position: int = 0
    reason: str = ""
    before: StepState
    after: StepState
    payload: JsonValue = None
    proof: SignedAction | None = None


class StepStatus(BaseModel):
    """One step of a rollback, as it is shown."""

    position: int
    step: str
    compensation: str | None
    payload: Any
    state: StepState
    completed: bool | None
    attempts: int
    redriven: int
    error: str | None
    invocation_id: str | None


class RunStatus(BaseModel):
    """The rollback of one run of a saga, as it is shown."""

    service: str
    status: Outcome
    strategy: str
    reason: str
    steps: list[StepStatus]
    runs: list[str] = []


class RollbackStatus(RunStatus):
    """A rollback, as it is shown: the last run's, but for the ids, the audit log and the times, which are of all runs.

    Args:
        earlier: The runs before it, each by itself, the first one first: a key can be used again after its retention.
    """

    saga_id: str
    started_at: datetime
    updated_at: datetime
    earlier: list[RunStatus] = []
    audit_log: list[AuditEntry] = []

    def has(self, runs: Collection[str]) -> bool:
        """Tell if a run's steps are here; of a rollback without ids, which an earlier version keeps, that is assumed.

        Args:
            runs: The run's id.
        """
        return not self.runs or set(runs) <= set(self.runs)

    @property
    def all_steps(self) -> list[StepStatus]:
        """The steps of all runs, in order."""
        return [step for run in (*self.earlier, self) for step in run.steps]

    def audit_log_of(self, step: str, position: int) -> list[AuditEntry]:
        """Return what was done about a step, and not about one of another run with its name."""
        return [each for each in self.audit_log if each.step == step and each.position in (0, position)]


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepAction(_Input):
    """An operator's act on a step, as `Rollbacks` takes it.

    Args:
        position: The step.
        act: What to do.
        actor: Who does it.
        reason: Why.
        payload: The new payload, with a redrive; None keeps the one there is.
        proof: The actor's signature.
    """

    position: int
    act: Act
    actor: UserName
    reason: Reason = ""
    payload: JsonValue = None
    proof: SignedAction | None = None


class ActionReceipt(BaseModel):
    """What an act led to.

    Args:
        id: The dead letter.
        act: What was done.
        state: The step's state now.
        number: The number of the act in the audit log.
    """

    id: str
    act: Act
    state: StepState
    number: int


class DeadLetter(BaseModel):
    """A step that could not be undone, and waits for an operator.

    Args:
        id: ``{saga}/{position}``.
        saga_id: The saga.
        service: The saga's service.
        step: The step's name.
        position: The step's position.
        compensation: The handler that failed.
        payload: What it was given.
        error: What it said last.
        signature: What equal failures have in common; the key of a group.
        reason: Why the saga is rolled back.
        attempts: Attempts since the last redrive.
        redriven: How often it was redriven before.
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
    """Which dead letters; each field that is given must fit.

    Args:
        saga_id: Of this saga.
        service: Of this service's sagas.
        step: With this step's name.
        signature: With this signature.
    """

    saga_id: str | None = None
    service: str | None = None
    step: str | None = None
    signature: str | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Tell if a dead letter fits."""
        wanted = self.model_dump(include={"saga_id", "service", "step", "signature"}, exclude_none=True)
        return all(getattr(letter, field) == value for field, value in wanted.items())


class ListRequest(DeadLetterFilter):
    """Which dead letters to list.

    Args:
        page: 1 for the first page.
        page_size: How many a page.
    """

    page: int = Field(default=1, ge=1)
    page_size: int = Field(default=50, ge=1, le=500)


class DeadLetterGroup(BaseModel):
    """Dead letters that failed alike."""

    signature: str
    count: int


class DeadLetterPage(BaseModel):
    """Dead letters, oldest first.

    Args:
        items: Those of this page.
        total: How many fit.
        page: Which page this is.
        pages: How many there are.
        groups: All that fit, counted by signature, largest first.
    """

    items: list[DeadLetter]
    total: int
    page: int
    pages: int
    groups: list[DeadLetterGroup]


class ActRequest(_Input):
    """An operator's act on one dead letter.

    Args:
        id: The dead letter.
        actor: Who acts.
        reason: Why.
        payload: The new payload, with a redrive; None keeps the one there is.
        proof: The actor's signature, see `perdure.saga.signatures.sign_action`; needed where acts must be signed.
    """

    id: str
    actor: UserName
    reason: Reason = ""
    payload: JsonValue = None
    proof: SignedAction | None = None


class BulkActionRequest(_Input):
    """An operator's act on all dead letters that fit a filter.

    Args:
        act: What to do.
        actor: Who acts.
        reason: Why.
        filter: Which ones; at least one field, so that nobody acts on all by accident.
        proofs: The actor's signature for each dead letter, by its id; where acts must be signed, those that have none
            are refused: they came after the actor had looked.
    """

    act: Act
    actor: UserName
    reason: Reason = ""
    filter: DeadLetterFilter
    proofs: dict[str, SignedAction] = Field(default={}, max_length=1000)


class BulkActionReceipt(BaseModel):
    """What an act on many led to.

    Args:
        done: The dead letters that it was done to.
        refused: Those it could not be done to, each with why.
    """

    done: list[str]
    refused: dict[str, str]


def roll_back_handler(service: str, key: str) -> CompensationHandler:
    """Return the handler by which a service rolls back one of its sagas."""
    return CompensationHandler(service=service, handler="roll_back", key=key)


begin_target: Target[RollbackRequest, None] = Target("Rollbacks", "begin", RollbackRequest, None)
read_report: Target[ReportQuery, ReportAnswer] = Target("Rollbacks", "report", ReportQuery, ReportAnswer)
rollback_status: Target[None, RollbackStatus] = Target("Rollbacks", "status", None, RollbackStatus)
act_on_step: Target[StepAction, ActionReceipt] = Target("Rollbacks", "act", StepAction, ActionReceipt)

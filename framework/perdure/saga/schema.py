"""Stored form of sagas: service names, state keys, record types, and the SQL that reads them.

An orchestration stores its steps in its own workflow state. `Rollbacks` copies them into the state of the object with
the saga's ID and adds the progress of the rollback. `DeadLetterIndex` stores one entry per dead letter.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from perdure._runtime.records import StoredRecord
from perdure.engine.admin import sql_interval, sql_text
from perdure.retry import RetryPolicy
from perdure.saga.config import SagaConfig
from perdure.saga.status import CompensationState, SagaPhase
from perdure.security.signed_actions import SignedAction
from perdure.state import State

ROLLBACKS: Final = "Rollbacks"
ROLLBACK_DISPATCHER: Final = "RollbackDispatcher"
DEAD_LETTERS: Final = "DeadLetters"
DEAD_LETTER_INDEX: Final = "DeadLetterIndex"
SAGA_RECONCILER: Final = "SagaReconciler"

# State and promises of an orchestration.
SAGA_PREFIX: Final = "saga/"
STEP_PREFIX: Final = "saga/0"
CLOSED_KEY: Final = "saga/closed"
FAILED_KEY: Final = "saga/failed"
EXECUTION_PREFIX: Final = "saga/execution/"
"""Prefix of the marker of a submitted execution; `Rollbacks` has the same key once it has stored the steps."""
ROLLBACK_PROMISE: Final = "saga/rollback"
"""Resolved when the rollback was requested from outside the orchestration."""
EXECUTION_PROMISE: Final = "saga/execution"
"""Execution ID of a saga that was submitted from outside: a shared handler cannot write state."""

# State of `Rollbacks`.
SAGA_KEY: Final = "saga"
PROGRESS_KEY: Final = "progress"
OPEN_KEY: Final = "open"
NONCES_KEY: Final = "nonces"

# State of `DeadLetterIndex`, whose only key is INDEX_KEY.
INDEX_KEY: Final = "all"
DEAD_LETTER_PREFIX: Final = "dead_letter/"

# State of `SagaReconciler`: prefixes of an orphan's ID.
SUBMITTED_PREFIX: Final = "submitted/"
ATTEMPTS_PREFIX: Final = "attempts/"
KILLED_PREFIX: Final = "killed/"
CANCELLED_PREFIX: Final = "cancelled/"


def step_key(position: int) -> str:
    """Return the state key of a step; keys sort in the order of the steps."""
    return f"saga/{position:06d}"


def execution_key(execution: str) -> str:
    """Return the state key that marks an execution.

    The ID is part of the key because values may be encrypted and the reconciler compares them in SQL.
    """
    return f"{EXECUTION_PREFIX}{execution}"


class CompensationHandler(BaseModel):
    """Handler that compensates a step.

    Args:
        service: The service.
        handler: The handler.
        key: The workflow key of a child saga, which its own service rolls back.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    service: str
    handler: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}"


class StepRecord(StoredRecord):
    """A step as recorded before its action starts.

    Args:
        position: 1 for the first step.
        step: The step's name.
        step_id: Equal for equal compensations with equal payloads.
        compensation: The compensation; None if the step needs none.
        payload: The compensation's payload.
        group: Position of the first step of the parallel group; None outside a group.
        pivot: Marks the point after which the saga is completed instead of rolled back; not a step itself.
        after_others: Compensated only after all other steps are, such as a notification of the cancellation.
        parent: ID of the parent saga, in the first step of a child.
        retry: Retries of the compensation after transient errors; None for those of the saga.
        timed_out: Invocations of attempts that exceeded their time limit and may still act. The rollback awaits their
            end. Only set in a request from the orchestration, never in its state.
    """

    position: int
    step: str
    step_id: str
    compensation: CompensationHandler | None = None
    payload: JsonValue = None
    group: int | None = None
    pivot: bool = False
    after_others: bool = False
    parent: str = ""
    retry: RetryPolicy | None = None
    timed_out: list[str] = Field(default_factory=list)


class ClosedSaga(StoredRecord):
    """Result that an orchestration stores when it ends.

    Args:
        phase: The final phase, or ``COMPENSATING`` if the orchestration ended before its rollback.
        error: The error of a failed saga.
        rolls_back: Whether a rollback was requested.
    """

    phase: SagaPhase
    error: str | None = None
    rolls_back: bool = False


class Waiter(BaseModel):
    """An invocation that waits for the end of a rollback.

    Args:
        invocation: Its ID.
        awakeable: Wakes it and carries no data, since any caller may complete an awakeable.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    invocation: str
    awakeable: str


class RollbackRequest(BaseModel):
    """A saga to roll back.

    Args:
        saga_id: The saga; the key of its `Rollbacks` object.
        service: The orchestrator's service.
        config: The rollback settings.
        steps: All recorded steps.
        completed: Whether a step's action completed, by position; no entry if unknown, as after a kill.
        running: Invocations of actions that were still running, by position. The rollback awaits their end.
        reason: The error that failed the saga.
        waiter: The invocation that waits for the result.
        first_hand: Sent by the failed orchestration itself, once.
        execution_ids: IDs of the executions that recorded the steps; empty if unknown. A workflow key can be reused
            after its retention, and the saga ID is then the same.
        trace: Span of the orchestration (W3C traceparent) that the rollback's spans link to.
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
    execution_ids: list[str] = []
    trace: str | None = None


class EarlierExecution(BaseModel):
    """An execution of a saga before the last one.

    Args:
        last: Position of its last step; its first step follows the last one of the execution before.
        service: The orchestrator's service.
        config: Its rollback settings.
        reason: The error that failed it.
        execution_ids: Its execution ID.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    last: int
    service: str
    config: SagaConfig = SagaConfig()
    reason: str
    execution_ids: list[str] = []


class StoredSaga(RollbackRequest, StoredRecord):
    """A saga as stored by `Rollbacks`: its last execution, with the steps and IDs of all executions.

    Args:
        earlier: The earlier executions, oldest first.
    """

    earlier: list[EarlierExecution] = Field(default_factory=list)

    @classmethod
    def of(cls, request: RollbackRequest) -> StoredSaga:
        """Return a saga with one execution."""
        return cls(**{**dict(request), "waiter": None})


class StepProgress(StoredRecord):
    """Progress of the compensation of one step.

    Args:
        state: The state of the compensation.
        completed: Whether the action completed; None if unknown, as after a kill.
        invocation_id: The action's invocation if it was still running; the rollback awaits its end.
        attempts: Failed attempts since the last redrive.
        refusals: Those of the attempts that ended with a terminal error.
        trying_since: Start of the first attempt since the last success, terminal error or redrive; None before it.
        redrives: Number of redrives.
        error: The last error.
        payload: Payload set by an operator; replaces the recorded one.
        unknown_outcomes: Consecutive attempts whose start has an unknown outcome.
        unresolved_attempt: The attempt with the unknown outcome, which is repeated until its result is known.
        due: When the next attempt is due; None before the first attempt and after the last. In the past while the
            attempt runs.
        running: Invocation of an attempt that outlasted a pass.
    """

    state: CompensationState = CompensationState.PENDING
    completed: bool | None = None
    invocation_id: str | None = None
    attempts: int = 0
    refusals: int = 0
    trying_since: datetime | None = None
    redrives: int = 0
    error: str | None = None
    payload: JsonValue = None
    unknown_outcomes: int = 0
    unresolved_attempt: str | None = None
    due: datetime | None = None
    running: str | None = None

    @property
    def attempt(self) -> str:
        """Name of the next attempt within the step; the same name attaches to the same invocation."""
        return self.unresolved_attempt or f"{self.redrives}.{self.attempts}"

    @property
    def is_waiting(self) -> bool:
        """Whether the compensation failed and waits for its next attempt, so that an operator may intervene."""
        return self.state is CompensationState.PENDING and self.due is not None and self.running is None

    def payload_for(self, step: StepRecord) -> JsonValue:
        """Return the compensation's payload: the operator's, or the recorded one."""
        return step.payload if self.payload is None else self.payload

    def is_left_undone(self) -> bool:
        """Return whether compensation was tried without success and no attempt is pending."""
        exhausted = (CompensationState.DEAD_LETTER, CompensationState.FAILED, CompensationState.DISCARDED)
        return self.state in exhausted or (self.state is CompensationState.SKIPPED and self.error is not None)

    def with_(self, **changes: Any) -> StepProgress:
        """Return a copy with changed fields."""
        return self.model_copy(update=changes)


class RollbackProgress(StoredRecord):
    """Progress of a rollback, apart from its steps.

    Args:
        generation: Number of the current pass; older passes do nothing.
        started_at: When the rollback was requested first.
        updated_at: When it last changed.
        waiters: Awakeables by waiting invocation.
        actions: Number of audit entries.
        waits_for: Number of the execution that an invocation waits for; no entry: all of them.
        ended: Numbers of the executions that are rolled back and reported.
    """

    generation: int = 0
    started_at: datetime
    updated_at: datetime
    waiters: dict[str, str] = Field(default_factory=dict)
    actions: int = 0
    waits_for: dict[str, int] = Field(default_factory=dict)
    ended: list[int] = Field(default_factory=list)

    def with_waiter(self, waiter: Waiter | None, execution: int | None) -> RollbackProgress:
        """Return a copy with a waiter for an execution, or for all if the number is None."""
        if waiter is None:
            return self
        others = self.without_waiters({waiter.invocation})
        return others.model_copy(
            update={
                "waiters": {**others.waiters, waiter.invocation: waiter.awakeable},
                "waits_for": {**others.waits_for, **({} if execution is None else {waiter.invocation: execution})},
            }
        )

    def without_waiters(self, invocations: Collection[str]) -> RollbackProgress:
        """Return a copy without these waiters."""
        waiters = {each: awakeable for each, awakeable in self.waiters.items() if each not in invocations}
        waits_for = {each: number for each, number in self.waits_for.items() if each in waiters}
        return self.model_copy(update={"waiters": waiters, "waits_for": waits_for})


class OperatorAction(StrEnum):
    """An operator action on a dead letter, or on a compensation that waits for its next attempt.

    ``REDRIVE`` repeats the compensation with a full set of attempts and, optionally, another payload; ``SKIP`` leaves
    the step as it is and continues the rollback; ``RESOLVE`` records that the step was compensated manually;
    ``DISCARD`` closes the dead letter without compensation; ``ANNOTATE`` only adds an audit entry.
    """

    REDRIVE = "redrive"
    SKIP = "skip"
    RESOLVE = "resolve"
    DISCARD = "discard"
    ANNOTATE = "annotate"


class AuditEntry(StoredRecord):
    """Audit entry of one operator action. Entries are never changed.

    Args:
        number: 1 for the first entry.
        at: When.
        actor: The operator.
        action: The action.
        step: The step's name.
        position: The step's position.
        reason: The operator's reason.
        before: The state before the action.
        after: The state after the action.
        payload: The new payload, if the action set one.
        signed_action: The operator's signed action; None if unsigned, and then the actor is unverified.
    """

    number: int
    at: datetime
    actor: str
    action: OperatorAction
    step: str
    position: int
    reason: str = ""
    before: CompensationState
    after: CompensationState
    payload: JsonValue = None
    signed_action: SignedAction | None = None


def saga_state(ctx: Any) -> State[StoredSaga]:
    """The saga, with the steps of all executions."""
    return State(ctx, SAGA_KEY, StoredSaga)


def rollback_progress_state(ctx: Any) -> State[RollbackProgress]:
    """The progress of the rollback."""
    return State(ctx, PROGRESS_KEY, RollbackProgress)


def open_marker(ctx: Any) -> State[bool]:
    """Set while a rollback has work to do, so that the reconciler detects a stalled one."""
    return State(ctx, OPEN_KEY, bool)


def execution_marker(ctx: Any, execution: str) -> State[bool]:
    """Set after the steps of an execution, so that the reconciler detects a rollback that never began."""
    return State(ctx, execution_key(execution), bool)


def step_progress_state(ctx: Any, position: int) -> State[StepProgress]:
    """The progress of one step."""
    return State(ctx, f"step/{position:06d}", StepProgress)


def audit_entry_state(ctx: Any, number: int) -> State[AuditEntry]:
    """One audit entry."""
    return State(ctx, f"audit_log/{number:06d}", AuditEntry)


async def all_step_progress(ctx: Any, saga: StoredSaga) -> dict[int, StepProgress]:
    """Return the progress of each step, by position."""
    found = {step.position: await step_progress_state(ctx, step.position).get() for step in saga.steps}
    return {position: each or StepProgress() for position, each in found.items()}


ORCHESTRATIONS_SQL: Final = "i.target_service_ty = 'workflow' and i.target_handler_name = 'run'"
"""Condition that a row ``i`` of ``sys_invocation_status`` is an orchestration."""

DEAD_LETTERS_SQL: Final = (
    "select service_name, service_key, key, encode(value, 'hex') as value from state "
    f"where service_name = '{DEAD_LETTER_INDEX}'"
)


def _same_key(alias: str) -> str:
    return f"on {alias}.service_name = i.target_service_name and {alias}.service_key = i.target_service_key"


# The phase depends on the engine's row of the orchestration, on the result that the orchestration stored, and on the
# rollback, which outlives it. All joins are by equal keys, and cheap; still, the query reads the state of all sagas.
# - The ID of a saga is its workflow key, with or without the service as a prefix. Hence two joins per table.
# - An ended orchestration is orphaned until `Rollbacks` has its execution marker. A saga that was submitted from
#   outside has its execution ID in a promise, which may be encrypted; any rollback under its key counts.
# - Rollbacks and dead letters of earlier executions under the same key cannot be told apart here.
# - A purged rollback leaves its execution markers.
_ROLLBACK: Final = (
    f"(select distinct service_key from state where service_name = '{ROLLBACKS}' "
    f"and (key = '{PROGRESS_KEY}' or key like '{EXECUTION_PREFIX}%'))"
)
_OPEN: Final = f"(select service_key from state where service_name = '{ROLLBACKS}' and key = '{OPEN_KEY}')"
_DEAD: Final = (
    r"(select distinct regexp_replace(key, '^[a-z_]+/(.*)/[0-9]+$', '\1') as service_key from state "
    f"where service_name = '{DEAD_LETTER_INDEX}')"
)
_PREFIXED: Final = "i.target_service_name || ':' || i.target_service_key"

SAGAS_SQL: Final = f"""
with sagas as (
  select i.id as id, i.target_service_name as service, i.target_service_key as key, i.completion_failure as failure,
    i.created_at as started_at, i.completed_at as ended_at,
    case
      when opened.service_key is not null or opened2.service_key is not null then 'compensating'
      when dead.service_key is not null or dead2.service_key is not null then 'needs_attention'
      when i.status = 'paused' then 'paused'
      when i.status != 'completed' and failed.service_key is not null then 'compensating'
      when i.status != 'completed' then 'running'
      when i.completion_result = 'success' then 'completed'
      when submitted.name is not null and received.name is null then '{SagaPhase.ORPHANED}'
      when closed.service_key is null and recorded.service_key is not null and submitted.name is null
        and (requested.service_key is null or (undone.service_key is null and undone2.service_key is null))
        then '{SagaPhase.ORPHANED}'
      when closed.phase = 'cancelled' then 'cancelled'
      when closed.rolls_back = 'true' or undone.service_key is not null or undone2.service_key is not null
        then 'rolled_back'
      else 'failed' end as phase
  from sys_invocation_status i
  left join (select service_name, service_key,
      (regexp_match(value_utf8, '"phase": ?"([a-z_]+)"'))[1] as phase,
      (regexp_match(value_utf8, '"rolls_back": ?(true|false)'))[1] as rolls_back
      from state where key = '{CLOSED_KEY}') closed {_same_key("closed")}
  left join (select service_name, service_key from state where key = '{FAILED_KEY}') failed {_same_key("failed")}
  left join (select service_name, service_key from state where key = '{step_key(1)}') recorded {_same_key("recorded")}
  left join (select service_name, service_key, key as name from state where service_name != '{ROLLBACKS}'
      and key like '{EXECUTION_PREFIX}%') submitted {_same_key("submitted")}
  left join (select key as name from state where service_name = '{ROLLBACKS}' and key like '{EXECUTION_PREFIX}%')
      received on received.name = submitted.name
  left join (select service_name, service_key from sys_promise where key = '{ROLLBACK_PROMISE}')
      requested {_same_key("requested")}
  left join {_OPEN} opened on opened.service_key = i.target_service_key
  left join {_OPEN} opened2 on opened2.service_key = {_PREFIXED}
  left join {_ROLLBACK} undone on undone.service_key = i.target_service_key
  left join {_ROLLBACK} undone2 on undone2.service_key = {_PREFIXED}
  left join {_DEAD} dead on dead.service_key = i.target_service_key
  left join {_DEAD} dead2 on dead2.service_key = {_PREFIXED}
  where {ORCHESTRATIONS_SQL}
)
"""
"""Start of a query: a table ``sagas`` with id, service, key, failure, started_at, ended_at and phase."""


def _of_saga(service: str, key: str) -> str:
    return f"service_name = {sql_text(service)} and service_key = {sql_text(key)}"


def recorded_steps_sql(service: str, key: str) -> str:
    """Return the query for the steps that an orchestration recorded."""
    return (
        f"select service_name, service_key, key, value from state where {_of_saga(service, key)} "
        f"and key like '{STEP_PREFIX}%' order by key"
    )


def submission_sql(service: str, key: str) -> str:
    """Return the query for the marks of an orchestration's submission to `Rollbacks`; they end with its retention."""
    return (
        f"select key from state where {_of_saga(service, key)} and key like '{EXECUTION_PREFIX}%' "
        f"union all select key from sys_promise where {_of_saga(service, key)} and key = '{ROLLBACK_PROMISE}'"
    )


def closed_sql(service: str, key: str) -> str:
    """Return the query for the result of an orchestration: one row if it ended by itself."""
    return f"select key from state where {_of_saga(service, key)} and key = '{CLOSED_KEY}'"


OrphanKind = Literal["orphaned", "unopened", "paused", "stalled", "halted"]


def orphan_queries(
    grace: timedelta, paused_limit: timedelta | None, dispatchers: Collection[str]
) -> dict[OrphanKind, str]:
    """Return the queries that the reconciler runs, in this order.

    Args:
        grace: How long an invocation must have ended or stood still.
        paused_limit: How long an orchestration must have been paused; None disables the check.
        dispatchers: Services whose paused invocations are resumed, apart from those of the rollback.
    """
    open_saga = f"""
      exists (select 1 from state s where s.service_name = i.target_service_name
              and s.service_key = i.target_service_key and s.key like '{STEP_PREFIX}%')
      and not exists (select 1 from state s where s.service_name = i.target_service_name
              and s.service_key = i.target_service_key and s.key = '{CLOSED_KEY}')"""
    columns = "i.id as id, i.target_service_name as service, i.target_service_key as key, i.created_at as began"
    resumed = ", ".join(map(sql_text, (ROLLBACKS, ROLLBACK_DISPATCHER, DEAD_LETTER_INDEX, *dispatchers)))
    before = f"now() - {sql_interval(grace)}"
    queries: dict[OrphanKind, str] = {
        # First, because repairs of other kinds depend on these invocations.
        "halted": f"""
      select i.id as id, i.target_service_name as service, coalesce(i.target_service_key, '') as key,
      i.target_handler_name || ' is paused' as reason from sys_invocation_status i
      where (i.target_service_name in ({resumed})
      or (i.target_service_ty = 'workflow' and i.target_handler_name = 'roll_back'
      and i.invoked_by_service_name = '{ROLLBACK_DISPATCHER}'))
      and i.status = 'paused' and i.modified_at < {before}""",
        "orphaned": f"""
      select {columns}, i.completion_failure as reason from sys_invocation_status i
      where {ORCHESTRATIONS_SQL} and i.status = 'completed'
      and i.completion_result = 'failure' and i.modified_at < {before} and {open_saga}""",
        "unopened": f"""
      select {columns}, 'its rollback never began' as reason from sys_invocation_status i
      join state s on s.service_name = i.target_service_name and s.service_key = i.target_service_key
      where {ORCHESTRATIONS_SQL} and i.status = 'completed'
      and i.modified_at < {before} and s.key like '{EXECUTION_PREFIX}%'
      and not exists (select 1 from state r where r.service_name = '{ROLLBACKS}' and r.key = s.key)""",
        "stalled": f"""
      select s.service_key as id, s.service_name as service, s.service_key as key, 'nothing is running' as reason
      from state s where s.service_name = '{ROLLBACKS}' and s.key = '{OPEN_KEY}'
      and exists (select 1 from state h where h.service_name = '{ROLLBACKS}' and h.key = '{PROGRESS_KEY}'
              and h.service_key = s.service_key)
      and not exists (select 1 from sys_invocation_status i where i.target_service_name = '{ROLLBACKS}'
              and i.target_service_key = s.service_key and i.target_handler_name in ('run', 'resume')
              and (i.status != 'completed' or i.modified_at >= {before}))""",
    }
    if paused_limit is not None:
        queries["paused"] = f"""
      select {columns}, 'paused' as reason from sys_invocation_status i
      where {ORCHESTRATIONS_SQL} and i.status = 'paused'
      and i.modified_at < now() - {sql_interval(paused_limit)} and {open_saga}"""
    return queries

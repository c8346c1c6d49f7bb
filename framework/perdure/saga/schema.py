"""Stored form of sagas: service names, state keys, record types, and the SQL that reads them.

An orchestration stores its steps in its own workflow state. When the saga fails, they are copied into the state of
`ExecutionRollbacks`, the object with the execution's ID, which adds the progress of the rollback. `Rollbacks`, the
object with the saga's ID, lists the saga's executions. `DeadLetterIndex` stores one entry per dead letter, and
`HeldStepIndex` one per held step. `SagaHeldSteps`, also with the saga's ID, stores the outcomes and the audit log of
held steps.

Phases are part of key names, because values may be encrypted and SQL compares names: ``saga/closed/{phase}`` in the
state of an orchestration, ``phase/{state}`` in that of a rollback.
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
from perdure.saga.status import CompensationState, RollbackState, SagaPhase
from perdure.security.signed_actions import SignedAction
from perdure.state import State

ROLLBACKS: Final = "Rollbacks"
EXECUTION_ROLLBACKS: Final = "ExecutionRollbacks"
ROLLBACK_DISPATCHER: Final = "RollbackDispatcher"
DEAD_LETTERS: Final = "DeadLetters"
DEAD_LETTER_INDEX: Final = "DeadLetterIndex"
SAGA_RECONCILER: Final = "SagaReconciler"
HELD_STEPS: Final = "HeldSteps"
SAGA_HELD_STEPS: Final = "SagaHeldSteps"
HELD_STEP_INDEX: Final = "HeldStepIndex"

# State and promises of an orchestration.
SAGA_PREFIX: Final = "saga/"
STEP_PREFIX: Final = "saga/0"
CLOSED_PREFIX: Final = "saga/closed/"
FAILED_KEY: Final = "saga/failed"
EXECUTION_PREFIX: Final = "saga/execution/"
"""Prefix of the state entry or promise whose name contains the ID of a submitted execution."""
EXECUTION_PROMISE: Final = "saga/rollback"
"""ID of an execution that is rolled back from outside: a shared handler cannot write state."""

HELD_MARK_PREFIX: Final = "saga/held/"
"""Prefix of the state entries of held steps, see `HeldMark`."""
HELD_WAIT: Final = "held step"
"""Name of the wait for the outcome of a held step, see `perdure._wake_ups.make_wait_id`."""

# State of `Rollbacks`.
EXECUTIONS_KEY: Final = "executions"

# State of `ExecutionRollbacks`.
ROLLBACK_KEY: Final = "rollback"
PROGRESS_KEY: Final = "progress"
PHASE_PREFIX: Final = "phase/"
NONCES_KEY: Final = "nonces"

# State of `DeadLetterIndex`: two entries for each dead letter. The first one holds its content, the second one the
# error signature. The name of the second one is `listed/{since}/{service}/{step}/{signature}/{redriven}/{size}/{id}`,
# with digests of step and signature.
DEAD_LETTER_PREFIX: Final = "dead_letter/"
LISTED_PREFIX: Final = "listed/"

# State of `HeldStepIndex`, whose only key is HELD_STEPS_KEY, and of `SagaHeldSteps`.
HELD_STEPS_KEY: Final = "all"
HELD_PREFIX: Final = "held/"

# State of `SagaReconciler`: prefixes of an orphan's ID.
ATTEMPTS_PREFIX: Final = "attempts/"
KILLED_PREFIX: Final = "killed/"
CANCELLED_PREFIX: Final = "cancelled/"
LATE_PREFIX: Final = "late/"


def step_key(position: int) -> str:
    """Return the state key of a step; keys sort in the order of the steps."""
    return f"saga/{position:06d}"


def held_mark_key(position: int) -> str:
    """Return the state key of a held step, in the orchestration."""
    return f"{HELD_MARK_PREFIX}{position:06d}"


def held_step_id(saga_id: str, position: int) -> str:
    """Return the ID of a held step."""
    return f"{saga_id}/{position}"


def execution_id(saga_id: str, token: str) -> str:
    """Return the ID of an execution, the key of its rollback.

    Args:
        saga_id: The saga.
        token: A random text: a workflow key, and with it the saga ID, can be reused after the workflow's retention.
    """
    return f"{saga_id}@{token}"


def execution_key(execution: str) -> str:
    """Return the name of the state entry or promise that marks a submitted execution."""
    return f"{EXECUTION_PREFIX}{execution}"


def saga_of(execution: str) -> str:
    """Return the saga of an execution."""
    return execution.rpartition("@")[0]


def letter_id(saga_id: str, number: int, position: int) -> str:
    """Return the ID of a dead letter; the number of the saga's first execution is omitted.

    Args:
        saga_id: The saga.
        number: The number of the execution, see `RollbackRequest`.
        position: The step.
    """
    return f"{saga_id}/{position}" if number == 1 else f"{saga_id}/{number}.{position}"


class CompensationHandler(BaseModel):
    """Handler that compensates a step.

    Args:
        service: The service.
        handler: The handler.
        key: The workflow key of a child saga, which its own service rolls back; or, if forwarded, the key of the
            handler's virtual object or workflow.
        forwarded: Whether the handler is an ordinary one, which `RollbackDispatcher` calls for the rollback.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    service: str
    handler: str
    key: str | None = None
    forwarded: bool = False

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}"

    @property
    def child_key(self) -> str | None:
        """The workflow key of a child saga; None if the step has no child."""
        return None if self.forwarded else self.key


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
        invocation: The invocation of the orchestration, in the first step.
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
    invocation: str = ""
    retry: RetryPolicy | None = None
    timed_out: list[str] = Field(default_factory=list)


class ClosedSaga(StoredRecord):
    """Result that an orchestration stores when it ends.

    Args:
        phase: The final phase, or ``COMPENSATING`` if the orchestration ended before its rollback.
        error: The error of a failed saga.
    """

    phase: SagaPhase
    error: str | None = None


class HeldMark(StoredRecord):
    """A step that an orchestration holds, in its state while it waits.

    Args:
        id: ID of the held step.
        step: The step's name.
        error: Its error.
        until: The deadline.
    """

    id: str
    step: str
    error: str
    until: datetime


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
    """A saga execution to roll back.

    Args:
        saga_id: The saga; the key of its `Rollbacks` object.
        execution: The execution; the key of its `ExecutionRollbacks` object.
        number: 1 for the saga's first execution; set by `Rollbacks`.
        service: The orchestrator's service.
        config: The rollback settings.
        steps: All recorded steps.
        completed: Whether a step's action completed, by position; no entry if unknown, as after a kill.
        running: Invocations of actions that were still running, by position. The rollback awaits their end.
        reason: The error that failed the saga.
        waiter: The invocation that waits for the result.
        trace: Span of the orchestration (W3C traceparent) that the rollback's spans link to.
        only_joins: Whether the request only adds its waiter to a recorded rollback. It has no steps, so it starts none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    saga_id: str
    execution: str
    number: int = 1
    service: str
    config: SagaConfig = SagaConfig()
    steps: list[StepRecord]
    completed: dict[int, bool] = {}
    running: dict[int, str] = {}
    reason: str
    waiter: Waiter | None = None
    trace: str | None = None
    only_joins: bool = False

    def letter_id(self, step: StepRecord) -> str:
        """Return the ID of a step's dead letter."""
        return letter_id(self.saga_id, self.number, step.position)


class StoredRollback(RollbackRequest, StoredRecord):
    """An execution as stored by `ExecutionRollbacks`; its waiters are in `RollbackProgress`."""


class CompensationProgress(BaseModel):
    """Progress of the compensation of one step.

    Args:
        state: The state of the compensation.
        completed: Whether the action completed; None if unknown, as after a kill.
        invocation_id: The action's invocation if it was still running; the rollback awaits its end.
        attempts: Failed attempts since the last redrive.
        refusals: Those of the attempts that ended with a terminal error; a few of them make a dead letter.
        lost_starts: Consecutive starts of the next attempt whose outcome is unknown.
        trying_since: Start of the first attempt since the last success, terminal error or redrive; None before it.
        redriven: Number of redrives.
        error: The last error.
        payload: The payload of the compensation.
        next_attempt_at: When the next attempt is due; None before the first attempt and if none follows. In the past
            while the attempt runs.
        compensation_invocation_id: Invocation of an attempt that outlasted a pass.
    """

    state: CompensationState = CompensationState.PENDING
    completed: bool | None = None
    invocation_id: str | None = None
    attempts: int = 0
    refusals: int = 0
    lost_starts: int = 0
    trying_since: datetime | None = None
    redriven: int = 0
    error: str | None = None
    payload: JsonValue = None
    next_attempt_at: datetime | None = None
    compensation_invocation_id: str | None = None

    @property
    def is_retried(self) -> bool:
        """Whether the compensation has failed and is tried again."""
        return self.state is CompensationState.PENDING and self.next_attempt_at is not None


class StepProgress(CompensationProgress, StoredRecord):
    """Progress of the compensation of one step, as stored; its payload is None unless an operator set one.

    Args:
        unresolved_attempt: The attempt with an unknown outcome, which is repeated until its result is known.
    """

    unresolved_attempt: str | None = None

    @property
    def attempt(self) -> str:
        """Name of the next attempt within the step; the same name attaches to the same invocation."""
        return self.unresolved_attempt or f"{self.redriven}.{self.attempts}"

    @property
    def is_waiting(self) -> bool:
        """Whether the compensation failed and waits for its next attempt, so that an operator may intervene."""
        return self.is_retried and self.compensation_invocation_id is None

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
        ended: Whether it has ended and was reported; an operator action may reopen it.
    """

    generation: int = 0
    started_at: datetime
    updated_at: datetime
    waiters: dict[str, str] = Field(default_factory=dict)
    actions: int = 0
    ended: bool = False

    def with_(self, **changes: Any) -> RollbackProgress:
        """Return a copy with changed fields."""
        return self.model_copy(update=changes)

    def with_waiter(self, waiter: Waiter | None) -> RollbackProgress:
        """Return a copy with a waiter."""
        if waiter is None:
            return self
        return self.with_(waiters={**self.waiters, waiter.invocation: waiter.awakeable})


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


def executions_state(ctx: Any) -> State[list[str]]:
    """The executions of a saga, oldest first."""
    return State(ctx, EXECUTIONS_KEY, list[str])


def rollback_record(ctx: Any) -> State[StoredRollback]:
    """The execution to roll back."""
    return State(ctx, ROLLBACK_KEY, StoredRollback)


def rollback_progress_state(ctx: Any) -> State[RollbackProgress]:
    """The progress of the rollback; it follows the record and the steps, so that a kill in between leaves none."""
    return State(ctx, PROGRESS_KEY, RollbackProgress)


def phase_marker(ctx: Any, phase: RollbackState) -> State[bool]:
    """Set while a rollback has this state, so that SQL can filter it. It outlives the purge of the rollback."""
    return State(ctx, PHASE_PREFIX + phase, bool)


async def mark_phase(ctx: Any, phase: RollbackState) -> None:
    """Record the state of a rollback. With two marks, after a kill in between, ``running`` counts."""
    await phase_marker(ctx, phase).set(True)
    for other in RollbackState:
        if other is not phase:
            await phase_marker(ctx, other).clear()


def step_progress_state(ctx: Any, position: int) -> State[StepProgress]:
    """The progress of one step."""
    return State(ctx, f"step/{position:06d}", StepProgress)


def audit_entry_state(ctx: Any, number: int) -> State[AuditEntry]:
    """One audit entry."""
    return State(ctx, f"audit_log/{number:06d}", AuditEntry)


async def all_step_progress(ctx: Any, rollback: RollbackRequest) -> dict[int, StepProgress]:
    """Return the progress of each step, by position."""
    found = {step.position: await step_progress_state(ctx, step.position).get() for step in rollback.steps}
    return {position: each or StepProgress() for position, each in found.items()}


ORCHESTRATIONS_SQL: Final = "i.target_service_ty = 'workflow' and i.target_handler_name = 'run'"
"""Condition that a row ``i`` of ``sys_invocation_status`` is an orchestration."""


OPEN_ORCHESTRATIONS_SQL: Final = "(i.status != 'completed' or i.completion_result = 'failure')"
"""Condition that a row ``i`` of ``sys_invocation_status`` has not completed with success."""


def of_key_sql(*keys: str, column: str = "service_key") -> str:
    """Return the condition that a row belongs to one of some keys, by which the engine reads only their rows.

    The engine computes the partition of a row from its scope, or without one, from its key. Perdure sets no scope. By
    the key alone, the engine reads the whole table.

    Args:
        keys: The keys, at most a few hundred.
        column: The column of the key.
    """
    return f"scope is null and {column} in ({', '.join(map(sql_text, keys))})"


DEAD_LETTER_SHARDS: Final = tuple("01234567")
"""Keys of `DeadLetterIndex`."""

DEAD_LETTERS_SQL: Final = f"""
select service, count(*) as number, min(since) as oldest, count(distinct saga) as sagas from (
  select split_part(key, '/', 2) as since, split_part(key, '/', 3) as service,
    regexp_replace(key, '^([^/]*/){{7}}(.*)/[^/]*$', '\\2') as saga
  from state where service_name = '{DEAD_LETTER_INDEX}' and {of_key_sql(*DEAD_LETTER_SHARDS)}
    and key like '{LISTED_PREFIX}%'
) group by service"""
"""Query for the number of dead letters per service, the oldest one, and the number of sagas. It reads names only."""


# The phase depends on the engine's row of the orchestration, on the names that the orchestration recorded, and on the
# phase of its rollback, which is found by the execution's ID. A purged rollback leaves its phase. An execution is
# orphaned if it was submitted and its rollback never began, or if it ended without closing its saga.
#
# The query reads only the names that a phase depends on. Of the recorded steps, it reads the first, which shows that
# the saga has steps. It leaves out the mark of a completed saga.
def sagas_sql(condition: str = "true", *, keys: Collection[str] | None = None) -> str:
    """Return the start of a query: a table ``sagas`` with id, service, key, phase, execution, failure, and times.

    Args:
        condition: Condition on the row ``i`` of ``sys_invocation_status``. A query without one reads the whole history.
        keys: The keys of the sagas, if they are known; the engine then reads the names of these alone.
    """
    of_keys = "true" if keys is None else of_key_sql(*keys)
    return f"""
with names as (
  select service_name, service_key, key as name from state where {of_keys} and (key = '{step_key(1)}'
    or key = '{FAILED_KEY}' or key like '{EXECUTION_PREFIX}%'
    or (key like '{CLOSED_PREFIX}%' and key != '{CLOSED_PREFIX}{SagaPhase.COMPLETED}'))
  union all select service_name, service_key, key as name from sys_promise
    where {of_keys} and key like '{EXECUTION_PREFIX}%'
), orchestrations as (
  select i.id as id, i.target_service_name as service, i.target_service_key as key, i.completion_failure as failure,
    i.completion_result as result, i.created_at as started_at, i.completed_at as ended_at, i.modified_at as modified_at,
    i.status as status, {_named(CLOSED_PREFIX)} as closed, {_named(FAILED_KEY)} as failed,
    {_named(STEP_PREFIX)} as recorded, {_named(EXECUTION_PREFIX)} as execution
  from sys_invocation_status i
  left join names n on n.service_name = i.target_service_name and n.service_key = i.target_service_key
  where {ORCHESTRATIONS_SQL} and {condition}
  group by i.id, i.target_service_name, i.target_service_key, i.completion_failure, i.completion_result, i.created_at,
    i.completed_at, i.modified_at, i.status
), rollbacks as (
  select service_key as execution, max(substr(key, {len(PHASE_PREFIX) + 1})) as phase
  from state where service_name = '{EXECUTION_ROLLBACKS}' and key like '{PHASE_PREFIX}%' group by service_key
), sagas as (
  select o.*, o.recorded is not null and o.closed is null as unclosed,
    case
      when r.phase = '{RollbackState.RUNNING}' then '{SagaPhase.COMPENSATING}'
      when r.phase = '{RollbackState.NEEDS_ATTENTION}' then '{SagaPhase.NEEDS_ATTENTION}'
      when o.status = 'paused' then '{SagaPhase.PAUSED}'
      when o.status != 'completed' and o.failed is not null then '{SagaPhase.COMPENSATING}'
      when o.status != 'completed' then '{SagaPhase.RUNNING}'
      when o.closed = '{SagaPhase.CANCELLED}' and r.phase is not null then '{SagaPhase.CANCELLED}'
      when r.phase = '{RollbackState.ROLLED_BACK}' then '{SagaPhase.ROLLED_BACK}'
      when r.phase = '{RollbackState.FINISHED_FORWARD}' then '{SagaPhase.COMPLETED}'
      when o.execution is not null then '{SagaPhase.ORPHANED}'
      when o.result = 'success' then '{SagaPhase.COMPLETED}'
      when o.recorded is not null and o.closed is null then '{SagaPhase.ORPHANED}'
      when o.closed = '{SagaPhase.CANCELLED}' then '{SagaPhase.CANCELLED}'
      else '{SagaPhase.FAILED}' end as phase
  from orchestrations o left join rollbacks r on r.execution = o.execution
)
"""


def _named(prefix: str) -> str:
    return f"max(case when n.name like '{prefix}%' then substr(n.name, {len(prefix) + 1}) end)"


_ENDED_ROLLBACKS: Final = ", ".join(
    sql_text(PHASE_PREFIX + state) for state in (RollbackState.ROLLED_BACK, RollbackState.FINISHED_FORWARD)
)

OPEN_EXECUTIONS_SQL: Final = f"""
  select e.service_name as service, e.service_key as key from (
    select service_name, service_key, key from state where key like '{EXECUTION_PREFIX}%'
    union all select service_name, service_key, key from sys_promise where key like '{EXECUTION_PREFIX}%') e
  left join (select service_key from state where service_name = '{EXECUTION_ROLLBACKS}' and key like '{PHASE_PREFIX}%'
    group by service_key having max(key) in ({_ENDED_ROLLBACKS})) r
  on r.service_key = substr(e.key, {len(EXECUTION_PREFIX) + 1})
  where r.service_key is null"""
"""Orchestrations with an execution whose rollback has not ended, or never began."""


def _of_saga(service: str, key: str) -> str:
    return f"service_name = {sql_text(service)} and {of_key_sql(key)}"


def recorded_steps_sql(service: str, key: str) -> str:
    """Return the query for the steps that an orchestration recorded."""
    return (
        f"select service_name, service_key, key, value from state where {_of_saga(service, key)} "
        f"and key like '{STEP_PREFIX}%' order by key"
    )


def execution_sql(service: str, key: str) -> str:
    """Return the query for the mark of an orchestration's submitted execution; it ends with its retention."""
    marked = f"where {_of_saga(service, key)} and key like '{EXECUTION_PREFIX}%'"
    return f"select key from state {marked} union all select key from sys_promise {marked}"


def saga_names_sql(keys: Collection[str]) -> str:
    """Return the query for the names that the orchestrations with some keys recorded, of any service."""
    return f"""
      select service_name, service_key, key from state where {of_key_sql(*keys)} and key like '{SAGA_PREFIX}%'
      union all select service_name, service_key, key from sys_promise
      where {of_key_sql(*keys)} and key like '{EXECUTION_PREFIX}%'"""


def phases_sql(executions: Collection[str]) -> str:
    """Return the query for the phases of the rollbacks of some executions."""
    return f"""
      select service_key, max(substr(key, {len(PHASE_PREFIX) + 1})) as phase from state
      where service_name = '{EXECUTION_ROLLBACKS}' and {of_key_sql(*executions)} and key like '{PHASE_PREFIX}%'
      group by service_key"""


def open_passes_sql(executions: Collection[str]) -> str:
    """Return the query for those of some executions whose rollback has a running or scheduled pass."""
    return f"""
      select distinct target_service_key as key from sys_invocation_status
      where target_service_name = '{EXECUTION_ROLLBACKS}' and target_handler_name in ('run', 'resume')
      and status != 'completed' and {of_key_sql(*executions, column="target_service_key")}"""


def times_sql(invocation: str) -> str:
    """Return the query for the start of an orchestration and for its last journal entry."""
    of = f"where id = {sql_text(invocation)}"
    return (
        f"select 'started_at' as field, created_at as at from sys_invocation_status {of} "
        f"union all select 'updated_at' as field, max(appended_at) as at from sys_journal {of}"
    )


def held_marks_sql(service: str, key: str) -> str:
    """Return the query for the held steps of an orchestration."""
    return f"select key from state where {_of_saga(service, key)} and key like '{HELD_MARK_PREFIX}%' order by key"


HELD_STEPS_SQL: Final = (
    f"select key from state where service_name = '{HELD_STEP_INDEX}' and {of_key_sql(HELD_STEPS_KEY)} "
    f"and key like '{HELD_PREFIX}%'"
)
"""Query for the names of all held steps, see `perdure.saga.held_step_names`."""


def closed_sql(service: str, key: str) -> str:
    """Return the query for the result of an orchestration: one row if it ended by itself."""
    return f"select key from state where {_of_saga(service, key)} and key like '{CLOSED_PREFIX}%'"


ROLLBACK_SERVICES: Final = (
    ROLLBACKS,
    EXECUTION_ROLLBACKS,
    ROLLBACK_DISPATCHER,
    DEAD_LETTER_INDEX,
    SAGA_HELD_STEPS,
    HELD_STEP_INDEX,
)
"""Services that rollbacks and held steps depend on."""

OrphanKind = Literal["orphaned", "paused", "stalled", "halted"]


def orphan_queries(
    grace: timedelta, paused_limit: timedelta | None, dispatchers: Collection[str], sagas: str
) -> list[str]:
    """Return the queries for orphans, each with a column ``kind``, in the order of their repair.

    Args:
        grace: How long an invocation must have ended or made no progress.
        paused_limit: How long an orchestration must have been paused; None disables the check.
        dispatchers: Services whose paused invocations are resumed, apart from those of the rollback.
        sagas: The table ``sagas``, see `sagas_sql`.
    """
    before = f"now() - {sql_interval(grace)}"
    resumed = ", ".join(map(sql_text, [*ROLLBACK_SERVICES, *dispatchers]))
    paused = "false"
    if paused_limit is not None:
        paused = f"status = 'paused' and unclosed and modified_at < now() - {sql_interval(paused_limit)}"
    return [
        # First, because repairs of other kinds depend on these invocations.
        f"""
      select 'halted' as kind, i.id as id, i.target_service_name as service, coalesce(i.target_service_key, '') as key,
      i.target_handler_name || ' is paused' as reason from sys_invocation_status i
      where (i.target_service_name in ({resumed})
      or (i.target_service_ty = 'workflow' and i.target_handler_name = 'roll_back'
      and i.invoked_by_service_name = '{ROLLBACK_DISPATCHER}'))
      and i.status = 'paused' and i.modified_at < {before}""",
        f"""{sagas}
      select case when status = 'paused' then 'paused' else 'orphaned' end as kind, id, service, key,
      started_at as began, case when status = 'paused' then 'paused'
        when execution is not null then 'its rollback never began' else failure end as reason
      from sagas where (phase = '{SagaPhase.ORPHANED}' and modified_at < {before}) or ({paused})""",
        f"""
      select 'stalled' as kind, s.service_key as id, s.service_name as service, s.service_key as key,
      'nothing is running' as reason from state s
      where s.service_name = '{EXECUTION_ROLLBACKS}' and s.key = '{PHASE_PREFIX}{RollbackState.RUNNING}'
      and not exists (select 1 from sys_invocation_status i where i.target_service_name = '{EXECUTION_ROLLBACKS}'
              and i.target_service_key = s.service_key and i.target_handler_name in ('run', 'resume')
              and (i.status != 'completed' or i.modified_at >= {before}))""",
    ]

"""The rollback of a saga: `Rollbacks` lists its executions, and `ExecutionRollbacks` rolls each of them back.

A workflow key can be reused after its retention, and a saga then has several executions. `Rollbacks` is a virtual
object keyed by the saga's ID, and `ExecutionRollbacks` one keyed by the execution's ID.

A rollback runs in passes. A pass compensates steps until it has to wait for a retry or a slow compensation; then it
ends and schedules the next pass. Between passes the object is free for operator actions. Each pass has a generation,
and a pass that is not the current one does nothing.

Orchestrators start a rollback through `Rollbacks.begin`, since a kill reaches everything that the killed invocation
called or sent, but not what `begin` sends after it has ended. Compensations are one-way sends with an idempotency key
per attempt, which the pass attaches to: a cancel of the pass cancels no compensation, and a repeated pass repeats none.

A rollback that ends with no dead letters schedules a `Purge` of itself, because its state would only grow. Its phase,
a few bytes, remains: without it, a retained orchestration would look orphaned and would be rolled back again.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import restate
from pydantic import BaseModel, ConfigDict

from perdure._runtime.dispatch import DAY_LONG_RETRIES
from perdure._runtime.sdk import is_replaying
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import is_own_cancel
from perdure._wake_ups import wake_up
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import Cancelled, Conflict, NotFound, TerminalError
from perdure.handlers import handler
from perdure.observability.logging import get_logger
from perdure.observability.metrics import COMPENSATIONS, OPERATOR_ACTIONS
from perdure.observability.metrics import ROLLBACKS as ROLLBACKS_ENDED
from perdure.observability.tracing import annotate, link_to
from perdure.saga.config import SagaConfig
from perdure.saga.dead_letters import dead_letter_of, remove_dead_letter, send_dead_letter, store_dead_letter
from perdure.saga.dispatch import Attempt
from perdure.saga.messages import (
    ActionReceipt,
    ExecutionStatus,
    ReportAnswer,
    RollbackPass,
    RollbackReport,
    RollbackStatus,
    StepAction,
    StepStatus,
    apply_to_step,
    execution_status,
    read_report,
    rollback_status,
)
from perdure.saga.payload_check import check_payload
from perdure.saga.policy import (
    after_failure,
    after_success,
    after_transient_failure,
    after_unknown_outcome,
    apply_action,
    delay_after,
    delay_while_running,
    initial_progress,
    next_steps,
    rollback_state,
)
from perdure.saga.schema import (
    EXECUTION_ROLLBACKS,
    PHASE_PREFIX,
    ROLLBACKS,
    AuditEntry,
    CompensationProgress,
    OperatorAction,
    RollbackProgress,
    RollbackRequest,
    StepProgress,
    StepRecord,
    StoredRollback,
    Waiter,
    all_step_progress,
    audit_entry_state,
    executions_state,
    letter_id,
    mark_phase,
    phase_marker,
    rollback_progress_state,
    rollback_record,
    saga_of,
    step_progress_state,
)
from perdure.saga.signatures import check_action
from perdure.saga.status import CompensationState, RollbackState
from perdure.state import State
from perdure.targets import KeyedTarget

MAX_ROUNDS = 20
"""Number of steps, or groups, per pass. Each wait may replay the journal, so a pass costs the square of its length."""
RETENTION: Final = timedelta(days=90)

_CLOSED = (RollbackState.ROLLED_BACK, RollbackState.FINISHED_FORWARD)

log = get_logger("perdure.saga")


class Purge(BaseModel):
    """Request of a rollback to purge itself, if it has not changed.

    Args:
        generation: Its last pass.
        actions: The number of its audit entries.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int
    actions: int


_run = KeyedTarget(EXECUTION_ROLLBACKS, "run", RollbackPass, None)
_apply = KeyedTarget(EXECUTION_ROLLBACKS, "apply", StepAction, ActionReceipt)
resume_target = KeyedTarget(EXECUTION_ROLLBACKS, "resume", None, None)
purge_target: KeyedTarget[Purge, bool] = KeyedTarget(EXECUTION_ROLLBACKS, "purge", Purge, bool)


class Rollbacks:
    """Handlers of `Rollbacks`."""

    def __init__(self) -> None:
        self.definition = restate.VirtualObject(
            ROLLBACKS,
            description="Starts and lists the rollbacks of a saga's executions.",
            invocation_retry_policy=DAY_LONG_RETRIES,
        )
        handler(self.definition, "exclusive", ingress_private=True)(self.begin)
        handler(self.definition, "shared", name=apply_to_step.handler, ingress_private=True)(self.apply)
        handler(self.definition, "shared", name=rollback_status.handler, read_only=True, ingress_private=False)(
            self.status
        )

    async def begin(self, ctx: restate.ObjectContext, request: RollbackRequest) -> None:
        """Start the rollback of an execution, independent of the caller. A repeated request adds its waiter."""
        annotate(saga_id=ctx.key())
        link_to(request.trace)
        if request.saga_id != ctx.key():
            raise Conflict(f"saga '{request.saga_id}' was sent to the rollback of '{ctx.key()}'")
        executions = await executions_state(ctx).get() or []
        if request.execution not in executions:
            executions = [*executions, request.execution]
            await executions_state(ctx).set(executions)
        numbered = request.model_copy(update={"number": executions.index(request.execution) + 1})
        await ObjectClient(ctx, _run, request.execution).send(RollbackPass(request=numbered))

    async def apply(self, ctx: restate.ObjectSharedContext, request: StepAction) -> ActionReceipt:
        """Apply an operator action to a step of an execution."""
        executions = await executions_state(ctx).get() or []
        if not 1 <= request.number <= len(executions):
            raise _no_dead_letter(letter_id(ctx.key(), request.number, request.position))
        return await ObjectClient(ctx, _apply, executions[request.number - 1]).call(request)

    async def status(self, ctx: restate.ObjectSharedContext) -> RollbackStatus:
        """Return the status of a saga's rollback: its last execution, with its steps, and the earlier ones."""
        executions = await executions_state(ctx).get() or []
        queries = [ObjectClient(ctx, execution_status, each).call_async() for each in executions]
        found: list[ExecutionStatus] = []
        for query in queries:
            try:
                found.append(await query)
            except TerminalError as error:
                if error.status_code != NotFound.default_status:  # else not recorded yet, or purged
                    raise
        if not found:
            raise NotFound(f"no rollback of a saga '{ctx.key()[:200]}'", metadata={"saga": ctx.key()[:200]})
        *earlier, last = found
        return RollbackStatus(**dict(last), earlier=earlier)


class ExecutionRollbacks:
    """Handlers of `ExecutionRollbacks`.

    Args:
        retention: How long an ended rollback is stored; None for ever.
    """

    def __init__(self, retention: timedelta | None = RETENTION) -> None:
        self._retention = retention
        self.definition = restate.VirtualObject(
            EXECUTION_ROLLBACKS,
            description="Rolls back one execution of a saga, independently of its orchestrator.",
            invocation_retry_policy=DAY_LONG_RETRIES,
        )
        handler(self.definition, "exclusive", ingress_private=True)(self.run)
        handler(self.definition, "exclusive", ingress_private=True)(self.resume)
        handler(self.definition, "exclusive", ingress_private=True)(self.purge)
        handler(self.definition, "exclusive", ingress_private=True)(self.apply)
        handler(self.definition, "shared", name=read_report.handler, ingress_private=True)(self.report)
        handler(self.definition, "shared", name=execution_status.handler, read_only=True, ingress_private=False)(
            self.status
        )

    async def run(self, ctx: restate.ObjectContext, this: RollbackPass) -> None:
        """Run one pass."""
        annotate(saga_id=saga_of(ctx.key()))
        link_to(None if this.request is None else this.request.trace)
        is_recorded = this.request is None
        try:
            now = await _now(ctx)
            rollback, progress = await rollback_record(ctx).get(), await rollback_progress_state(ctx).get()
            if this.request is None:
                if rollback is None or progress is None or this.generation != progress.generation:
                    return
                link_to(rollback.trace)
            elif (rollback is None or progress is None) and this.request.only_joins:
                return  # its state was deleted; the waiter finds no record and repeats the steps
            elif rollback is None or progress is None:
                rollback, progress = await _open(ctx, this.request, now)
            else:
                await _join(ctx, progress, this.request.waiter)
                return
            is_recorded = True
            await self._compensate(ctx, rollback, progress, await all_step_progress(ctx, rollback), now)
        except TerminalError as error:
            if not is_own_cancel(error):
                raise
            # A cancel must not end a rollback. An operator skips single steps instead.
            if not is_recorded:
                await _send_pass(ctx, this, None)
            else:
                await self.resume(ctx)

    async def resume(self, ctx: restate.ObjectContext) -> None:
        """Continue a rollback whose next pass was killed."""
        progress = await rollback_progress_state(ctx).get()
        if progress is not None:
            await _send_pass(ctx, RollbackPass(generation=progress.generation), None)

    async def purge(self, ctx: restate.ObjectContext, this: Purge) -> bool:
        """Purge a rollback that has ended and not changed since; return whether it was purged."""
        rollback, progress = await rollback_record(ctx).get(), await rollback_progress_state(ctx).get()
        if rollback is None or progress is None:
            return False
        state = rollback_state(rollback.steps, await all_step_progress(ctx, rollback), rollback.config)
        is_closed = progress.ended and state in _CLOSED
        if (
            not is_closed
            or progress.waiters
            or (progress.generation, progress.actions)
            != (
                this.generation,
                this.actions,
            )
        ):
            log.info("saga.rollback.not_purged", saga=rollback.saga_id, reason="changed" if is_closed else "open")
            return False
        for name in await ctx.state_keys():
            if not name.startswith(PHASE_PREFIX):
                await State(ctx, name, bool).clear()  # the type does not matter
        log.info("saga.rollback.purged", saga=rollback.saga_id)
        return True

    async def apply(self, ctx: restate.ObjectContext, request: StepAction) -> ActionReceipt:
        """Apply an operator action to a step and add it to the audit log."""
        now = await _now(ctx)
        rollback, progress = await rollback_record(ctx).get(), await rollback_progress_state(ctx).get()
        step = next((each for each in rollback.steps if each.position == request.position), None) if rollback else None
        if rollback is None or progress is None or step is None:
            raise _no_dead_letter(letter_id(saga_of(ctx.key()), request.number, request.position))
        letter = rollback.letter_id(step)
        before = await step_progress_state(ctx, step.position).get() or StepProgress()
        payload = before.payload_for(step)
        checked = await check_action(ctx, request, letter, payload=payload, redriven=before.redriven, now=now)
        if request.action is OperatorAction.REDRIVE and step.compensation is None:
            raise Conflict(f"step '{step.step}' has no compensation to redrive: complete it manually, then resolve it")
        if step.compensation is not None and request.payload is not None:
            await check_payload(ctx, step.compensation, request.payload)
        if before.state is not CompensationState.DEAD_LETTER:  # its removal from the index may have been killed
            await remove_dead_letter(ctx, letter)
        after = apply_action(before, request.action, step.step, request.payload)
        later = progress.with_(actions=progress.actions + 1, updated_at=now, ended=progress.ended and after == before)
        await checked.store(ctx)
        await audit_entry_state(ctx, later.actions).set(
            AuditEntry(
                number=later.actions,
                at=now,
                actor=checked.actor,
                action=request.action,
                step=step.step,
                position=step.position,
                reason=request.reason,
                before=before.state,
                after=after.state,
                payload=request.payload,
                signed_action=request.signed_action,
            )
        )
        log.info(
            "saga.operator_action",
            saga=rollback.saga_id,
            step=step.step,
            action=request.action,
            actor=checked.actor,
            state=after.state,
        )
        if not is_replaying(ctx):
            OPERATOR_ACTIONS.count(service=rollback.service, action=request.action.value)
        await rollback_progress_state(ctx).set(later)
        if after != before:
            # First, so that the reconciler continues a rollback that is killed here.
            await mark_phase(ctx, RollbackState.RUNNING)
            await step_progress_state(ctx, step.position).set(after)
            await remove_dead_letter(ctx, letter)
            await _schedule_pass(ctx, later, now, timedelta(0))
        return ActionReceipt(id=letter, action=request.action, state=after.state, number=later.actions)

    async def report(self, ctx: restate.ObjectSharedContext, wait: str) -> ReportAnswer:
        """Return the result of the rollback to a waiter, once it has ended."""
        rollback, progress = await rollback_record(ctx).get(), await rollback_progress_state(ctx).get()
        if rollback is None or progress is None:
            return ReportAnswer(wait=wait)
        report = report_of(rollback, await all_step_progress(ctx, rollback)) if progress.ended else None
        return ReportAnswer(wait=wait, is_recorded=True, report=report)

    async def status(self, ctx: restate.ObjectSharedContext) -> ExecutionStatus:
        """Return the status of the rollback, with its steps."""
        rollback, progress = await rollback_record(ctx).get(), await rollback_progress_state(ctx).get()
        if rollback is None or progress is None:
            raise NotFound(f"no rollback of an execution '{ctx.key()[:200]}'", metadata={"execution": ctx.key()[:200]})
        return _status(rollback, progress, await all_step_progress(ctx, rollback), await _audit_log(ctx, progress))

    async def _compensate(
        self,
        ctx: restate.ObjectContext,
        rollback: StoredRollback,
        progress: RollbackProgress,
        steps: dict[int, StepProgress],
        now: datetime,
    ) -> None:
        """Compensate the steps that are due; then schedule the next pass, or report the end."""
        delay = await _compensate_steps(ctx, rollback, steps, now)
        if delay is not None:
            await _schedule_pass(ctx, progress, now, delay)
            return
        if not progress.ended:
            progress = await _end(ctx, rollback, progress, steps)
        state = rollback_state(rollback.steps, steps, rollback.config)
        await mark_phase(ctx, state)
        if self._retention is not None and state in _CLOSED and rollback.steps:
            this = Purge(generation=progress.generation, actions=progress.actions)
            await ObjectClient(ctx, purge_target, ctx.key()).send(this, delay=self._retention)


async def _open(
    ctx: restate.ObjectContext, request: RollbackRequest, now: datetime
) -> tuple[StoredRollback, RollbackProgress]:
    """Record a rollback. If it is interrupted, the repeated request records it again."""
    if any([await phase_marker(ctx, state).get() for state in _CLOSED]):  # purged: nothing is compensated again
        request = request.model_copy(update={"steps": []})
    steps = initial_progress(
        request.steps,
        request.config,
        completed=request.completed,
        running=request.running,
        reason=request.reason,
    )
    for step in request.steps:
        await step_progress_state(ctx, step.position).set(steps[step.position])
        if steps[step.position].state is CompensationState.DEAD_LETTER:
            await send_dead_letter(ctx, dead_letter_of(request, step, steps[step.position], now))
    rollback = StoredRollback(**{**dict(request), "waiter": None, "only_joins": False})
    await rollback_record(ctx).set(rollback)
    progress = RollbackProgress(started_at=now, updated_at=now).with_waiter(request.waiter)
    await rollback_progress_state(ctx).set(progress)
    await mark_phase(ctx, RollbackState.RUNNING)
    log.info("saga.rollback.started", saga=request.saga_id, steps=len(request.steps), reason=request.reason)
    return rollback, progress


async def _join(ctx: restate.ObjectContext, progress: RollbackProgress, waiter: Waiter | None) -> None:
    """Add a waiter to a rollback, and wake it if the rollback has ended."""
    if not progress.ended:
        await phase_marker(ctx, RollbackState.RUNNING).set(True)  # `_open` may have been killed before it
    if progress.ended and waiter is not None:
        wake_up(ctx, waiter.awakeable)
    elif (joined := progress.with_waiter(waiter)) != progress:
        await rollback_progress_state(ctx).set(joined)


async def _compensate_steps(
    ctx: restate.ObjectContext, rollback: RollbackRequest, steps: dict[int, StepProgress], now: datetime
) -> timedelta | None:
    """Compensate steps, latest first; return the delay until the next pass, or None at the end of the rollback."""
    by_position = {step.position: step for step in rollback.steps}
    rounds = 0
    while positions := next_steps(rollback.steps, steps, rollback.config):
        rounds += 1
        if rounds > MAX_ROUNDS:
            return timedelta(0)
        attempts = [await Attempt.start(ctx, rollback, by_position[each], steps[each]) for each in positions]
        delay: timedelta | None = None
        for attempt in attempts:
            position = attempt.step.position
            before = steps[position]
            if before.trying_since is None:
                before = before.with_(trying_since=now)
            after = await _after(attempt, before, rollback.config, now)
            if after is None:
                before = before.with_(compensation_invocation_id=attempt.invocation_id)
                if before != steps[position]:
                    steps[position] = before
                    await step_progress_state(ctx, position).set(before)
                delay = max(delay or timedelta(0), delay_while_running(before, now))
                continue
            pause: timedelta | None = None
            if after.state is CompensationState.PENDING:
                retry = rollback.config.transient_retry_of(attempt.step.retry)
                pause = scaled(delay_after(after, retry, rollback.config))
                delay = max(delay or timedelta(0), pause)
            steps[position] = after = after.with_(next_attempt_at=None if pause is None else now + pause)
            await step_progress_state(ctx, position).set(after)
            if after.lost_starts:
                log.warning(
                    "saga.compensation.unknown_outcome",
                    saga=rollback.saga_id,
                    step=attempt.step.step,
                    error=attempt.unknown_outcome,
                )
            else:
                await _report(ctx, rollback, attempt.step, after, now)
        if delay is not None:
            return delay
    return None


async def _after(attempt: Attempt, before: StepProgress, config: SagaConfig, now: datetime) -> StepProgress | None:
    """Return a step's progress after an attempt; None if the attempt still runs."""
    retry = config.transient_retry_of(attempt.step.retry)
    if attempt.unknown_outcome is not None:
        return after_unknown_outcome(before, attempt.unknown_outcome, retry, config, now)
    if not await attempt.ended():
        return None
    failure = await attempt.failure()
    if failure is None:
        return after_success(before)
    if failure.is_transient:
        return after_transient_failure(before, failure.message, retry, config, now)
    failed = after_failure(before, failure.message, config)
    return failed if attempt.is_started else failed.with_(unresolved_attempt=before.unresolved_attempt)


async def _report(
    ctx: restate.ObjectContext, rollback: RollbackRequest, step: StepRecord, progress: StepProgress, now: datetime
) -> None:
    log.info(
        "saga.compensation.succeeded" if progress.error is None else "saga.compensation.failed",
        saga=rollback.saga_id,
        step=step.step,
        state=progress.state,
        attempts=progress.attempts,
        error=progress.error,
    )
    if not is_replaying(ctx):
        COMPENSATIONS.count(service=rollback.service, step=step.step, state=progress.state.value)
    if progress.state is CompensationState.DEAD_LETTER:
        await send_dead_letter(ctx, dead_letter_of(rollback, step, progress, now))


async def _schedule_pass(
    ctx: restate.ObjectContext, progress: RollbackProgress, now: datetime, delay: timedelta
) -> None:
    later = progress.with_(generation=progress.generation + 1, updated_at=now)
    await rollback_progress_state(ctx).set(later)
    await _send_pass(ctx, RollbackPass(generation=later.generation), delay)


async def _send_pass(ctx: restate.ObjectContext, this: RollbackPass, delay: timedelta | None) -> None:
    ObjectClient(ctx, _run, ctx.key()).send_scaled(this, delay or None)


async def _end(
    ctx: restate.ObjectContext,
    rollback: RollbackRequest,
    progress: RollbackProgress,
    steps: dict[int, StepProgress],
) -> RollbackProgress:
    """Record and report the end of a rollback; an operator may reopen it."""
    now = await _now(ctx)
    report = report_of(rollback, steps)
    for step in rollback.steps:
        known = steps[step.position]
        if known.state is CompensationState.DEAD_LETTER:
            await store_dead_letter(ctx, dead_letter_of(rollback, step, known, now))
        is_unneeded = step.after_others and report.outcome is RollbackState.ROLLED_BACK
        if is_unneeded and known.state is CompensationState.PENDING:
            steps[step.position] = known.with_(state=CompensationState.SKIPPED)
            await step_progress_state(ctx, step.position).set(steps[step.position])
    ended = progress.with_(ended=True, updated_at=now, waiters={})
    await rollback_progress_state(ctx).set(ended)  # first, because a woken waiter reads it
    for awakeable in progress.waiters.values():
        wake_up(ctx, awakeable)
    if not is_replaying(ctx):
        ROLLBACKS_ENDED.count(service=rollback.service, outcome=report.outcome.value)
    event = "saga.rollback.completed" if report.outcome is RollbackState.ROLLED_BACK else "saga.needs_attention"
    log.info(event, saga=rollback.saga_id, compensated=report.undone, dead_letters=report.dead_letters)
    return ended


async def _now(ctx: restate.ObjectContext) -> datetime:
    try:
        return await Time(ctx).now()
    except TerminalError as error:
        raise Cancelled("cancelled while reading the clock") from error


def report_of(rollback: RollbackRequest, steps: dict[int, StepProgress]) -> RollbackReport:
    """Return the report of a rollback."""

    def names(state: CompensationState) -> list[str]:
        return [step.step for step in reversed(rollback.steps) if steps[step.position].state is state]

    return RollbackReport(
        outcome=rollback_state(rollback.steps, steps, rollback.config),
        undone=names(CompensationState.UNDONE),
        dead_letters=names(CompensationState.DEAD_LETTER),
    )


def _no_dead_letter(letter: str) -> NotFound:
    return NotFound(f"no dead letter '{letter}'", metadata={"field": "id"})


async def _audit_log(ctx: Any, progress: RollbackProgress) -> list[AuditEntry]:
    entries = [await audit_entry_state(ctx, number).get() for number in range(1, progress.actions + 1)]
    return [entry for entry in entries if entry is not None]


def _status(
    rollback: RollbackRequest, progress: RollbackProgress, steps: dict[int, StepProgress], audit_log: list[AuditEntry]
) -> ExecutionStatus:
    return ExecutionStatus(
        saga_id=rollback.saga_id,
        execution=rollback.execution,
        number=rollback.number,
        service=rollback.service,
        status=rollback_state(rollback.steps, steps, rollback.config),
        strategy=rollback.config.strategy.value,
        reason=rollback.reason,
        started_at=progress.started_at,
        updated_at=progress.updated_at,
        audit_log=audit_log,
        steps=[
            StepStatus(
                **{
                    **{field: getattr(steps[step.position], field) for field in CompensationProgress.model_fields},
                    "payload": steps[step.position].payload_for(step),
                },
                position=step.position,
                step=step.step,
                compensation=None if step.compensation is None else str(step.compensation),
            )
            for step in rollback.steps
        ],
    )

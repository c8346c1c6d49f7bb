"""`Rollbacks`: the rollback of a saga, a virtual object keyed by the saga's ID.

A rollback runs in passes. A pass compensates steps until it has to wait for a retry or a slow compensation; then it
ends and schedules the next pass. Between passes the object is free for status queries and operator actions. Each pass
has a generation, and a pass that is not the current one does nothing.

Orchestrators start a rollback through `begin`, since a kill reaches everything that the killed invocation called or
sent, but not what `begin` sends after it has ended. Compensations are one-way sends with an idempotency key per
attempt, which the pass attaches to: a cancel of the pass cancels no compensation, and a repeated pass repeats none.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import restate

from perdure._runtime.dispatch import DAY_LONG_RETRIES
from perdure._runtime.sdk import is_replaying
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import is_own_cancel
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import Cancelled, Conflict, NotFound, TerminalError
from perdure.handlers import handler
from perdure.observability.logging import get_logger
from perdure.observability.metrics import COMPENSATIONS, OPERATOR_ACTIONS
from perdure.observability.metrics import ROLLBACKS as ROLLBACKS_ENDED
from perdure.observability.tracing import annotate, link_to
from perdure.saga.admission import admit
from perdure.saga.config import SagaConfig
from perdure.saga.dead_letters import dead_letter_of, remove_dead_letter, send_dead_letter, store_dead_letter
from perdure.saga.dispatch import Attempt
from perdure.saga.executions import execution_number_at, executions_of, is_over, report_of
from perdure.saga.messages import (
    ActionReceipt,
    ExecutionStatus,
    ReportAnswer,
    ReportQuery,
    RollbackPass,
    RollbackStatus,
    StepAction,
    StepStatus,
    apply_to_step,
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
    next_steps,
    rollback_state,
    time_until_due,
)
from perdure.saga.retention import RETENTION, Purge, check_retention, plan_purge, purge_unchanged
from perdure.saga.schema import (
    ROLLBACKS,
    AuditEntry,
    OperatorAction,
    RollbackProgress,
    RollbackRequest,
    StepProgress,
    StepRecord,
    StoredSaga,
    all_step_progress,
    audit_entry_state,
    open_marker,
    rollback_progress_state,
    saga_state,
    step_progress_state,
)
from perdure.saga.signatures import check_action
from perdure.saga.status import CompensationState, RollbackState
from perdure.saga.waits import report_for, wake_waiters
from perdure.targets import KeyedTarget

MAX_ROUNDS = 20
"""Number of steps, or groups, per pass. Each wait may replay the journal, so a pass costs the square of its length."""

log = get_logger("perdure.saga")

_run = KeyedTarget(ROLLBACKS, "run", RollbackPass, None)
resume_target = KeyedTarget(ROLLBACKS, "resume", None, None)


class Rollbacks:
    """Handlers of `Rollbacks`.

    Args:
        retention: How long an ended rollback is stored; None for ever.

    Raises:
        ConfigurationError: The retention is too short; see `check_retention`.
    """

    def __init__(self, retention: timedelta | None = RETENTION) -> None:
        self._retention = check_retention(retention)
        self.definition = restate.VirtualObject(
            ROLLBACKS,
            description="Rolls back sagas, independently of their orchestrators.",
            invocation_retry_policy=DAY_LONG_RETRIES,
        )
        handler(self.definition, "shared", ingress_private=True)(self.begin)
        handler(self.definition, "exclusive", ingress_private=True)(self.run)
        handler(self.definition, "exclusive", ingress_private=True)(self.resume)
        handler(self.definition, "exclusive", ingress_private=True)(self.purge)
        handler(self.definition, "exclusive", name=apply_to_step.handler, ingress_private=True)(self.apply)
        handler(self.definition, "shared", name=read_report.handler, ingress_private=True)(self.report)
        handler(self.definition, "shared", name=rollback_status.handler, read_only=True, ingress_private=False)(
            self.status
        )

    async def begin(self, ctx: restate.ObjectSharedContext, request: RollbackRequest) -> None:
        """Start a saga's rollback, independent of the caller."""
        annotate(saga_id=ctx.key())
        link_to(request.trace)
        if request.saga_id != ctx.key():
            raise Conflict(f"saga '{request.saga_id}' was sent to the rollback of '{ctx.key()}'")
        await ObjectClient(ctx, _run, ctx.key()).send(RollbackPass(request=request))

    async def run(self, ctx: restate.ObjectContext, this: RollbackPass) -> None:
        """Run one pass."""
        annotate(saga_id=ctx.key())
        link_to(None if this.request is None else this.request.trace)
        is_admitted = this.request is None
        try:
            now = await _now(ctx)
            saga, progress = await saga_state(ctx).get(), await rollback_progress_state(ctx).get()
            if saga is not None and this.request is None:
                link_to(saga.trace)
            is_admitted = True  # admission writes before it waits for anything
            await self._run_pass(ctx, this, saga, progress, now)
        except TerminalError as error:
            if not is_own_cancel(error):
                raise
            # A cancel must not end a rollback. An operator skips single steps instead.
            if not is_admitted:
                await _send_pass(ctx, this, None)
            else:
                await _continue(ctx)

    async def resume(self, ctx: restate.ObjectContext) -> None:
        """Continue a rollback whose next pass was killed."""
        await _continue(ctx)

    async def purge(self, ctx: restate.ObjectContext, this: Purge) -> bool:
        """Purge a rollback that has ended and not changed since; return whether it was purged."""
        return await purge_unchanged(ctx, this)

    async def apply(self, ctx: restate.ObjectContext, request: StepAction) -> ActionReceipt:
        """Apply an operator action to a step and add it to the audit log."""
        now = await _now(ctx)
        saga, progress = await saga_state(ctx).get(), await rollback_progress_state(ctx).get()
        step = next((each for each in saga.steps if each.position == request.position), None) if saga else None
        if saga is None or progress is None or step is None:
            raise NotFound(f"no dead letter '{ctx.key()}/{request.position}'", metadata={"field": "id"})
        before = await step_progress_state(ctx, step.position).get() or StepProgress()
        checked = await check_action(ctx, request, payload=before.payload_for(step), redriven=before.redrives, now=now)
        if request.action is OperatorAction.REDRIVE and step.compensation is None:
            raise Conflict(f"step '{step.step}' has no compensation to redrive: complete it manually, then resolve it")
        if step.compensation is not None and request.payload is not None:
            await check_payload(ctx, step.compensation, request.payload)
        letter_id = f"{saga.saga_id}/{step.position}"
        if before.state is not CompensationState.DEAD_LETTER:  # its removal from the index may have been killed
            await remove_dead_letter(ctx, letter_id)
        after = apply_action(before, request.action, step.step, request.payload)
        number = execution_number_at(saga, step.position)
        ended = [each for each in progress.ended if each != number or after == before]
        later = progress.model_copy(update={"actions": progress.actions + 1, "updated_at": now, "ended": ended})
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
            saga=saga.saga_id,
            step=step.step,
            action=request.action,
            actor=checked.actor,
            state=after.state,
        )
        if not is_replaying(ctx):
            OPERATOR_ACTIONS.count(service=executions_of(saga)[number - 1].service, action=request.action.value)
        await rollback_progress_state(ctx).set(later)
        if after != before:
            await open_marker(ctx).set(True)  # first, so that the reconciler continues a rollback that is killed here
            await step_progress_state(ctx, step.position).set(after)
            await remove_dead_letter(ctx, letter_id)
            await _schedule_pass(ctx, later, now, timedelta(0))
        return ActionReceipt(id=letter_id, action=request.action, state=after.state, number=later.actions)

    async def report(self, ctx: restate.ObjectSharedContext, query: ReportQuery) -> ReportAnswer:
        """Return the result of an execution's rollback."""
        return await report_for(ctx, query)

    async def status(self, ctx: restate.ObjectSharedContext) -> RollbackStatus:
        """Return the status of a saga's rollback, with its steps."""
        saga, progress = await saga_state(ctx).get(), await rollback_progress_state(ctx).get()
        if saga is None or progress is None:
            raise NotFound(f"no rollback of a saga '{ctx.key()[:200]}'", metadata={"saga": ctx.key()[:200]})
        steps = await all_step_progress(ctx, saga)
        *earlier, last = [_execution_status(each, steps) for each in executions_of(saga)]
        return RollbackStatus(
            **{**dict(last), "execution_ids": saga.execution_ids},
            saga_id=saga.saga_id,
            started_at=progress.started_at,
            updated_at=progress.updated_at,
            earlier=earlier,
            audit_log=[
                entry
                for number in range(1, progress.actions + 1)
                if (entry := await audit_entry_state(ctx, number).get())
            ],
        )

    async def _run_pass(
        self,
        ctx: restate.ObjectContext,
        this: RollbackPass,
        saga: StoredSaga | None,
        progress: RollbackProgress | None,
        now: datetime,
    ) -> None:
        if this.request is not None:
            is_new = saga is None
            admission = await admit(ctx, this.request, saga, progress, now)
            saga, progress = admission.saga, admission.progress
            if admission.has_work and not is_new:  # a scheduled pass does not know these steps
                await _schedule_pass(ctx, progress, now, timedelta(0))
                return
            if not admission.has_work:
                if admission.has_waiter:
                    await wake_waiters(ctx, saga, progress)
                return
        elif saga is None or progress is None or this.generation != progress.generation:
            return
        await self._compensate(ctx, saga, progress, await all_step_progress(ctx, saga), now)

    async def _compensate(
        self,
        ctx: restate.ObjectContext,
        saga: StoredSaga,
        progress: RollbackProgress,
        steps: dict[int, StepProgress],
        now: datetime,
    ) -> None:
        """Compensate the steps that are due, last execution first; then schedule the next pass or finish."""
        executions = executions_of(saga)
        is_alone = sum(not is_over(each, steps) for each in executions) == 1
        delays: list[timedelta] = []
        for number, each in reversed(list(enumerate(executions, start=1))):
            delay = await _compensate_execution(ctx, each, steps, now, is_alone=is_alone)
            if delay is not None:
                delays.append(delay)
            elif number not in progress.ended:
                progress = await _end_execution(ctx, saga, number, progress, steps)
        if delays:
            await _schedule_pass(ctx, progress, now, min(delays))
            return
        await open_marker(ctx).clear()
        await plan_purge(ctx, progress, report_of(executions, steps).outcome, self._retention)


async def _continue(ctx: restate.ObjectContext) -> None:
    progress = await rollback_progress_state(ctx).get()
    if progress is not None:
        await _send_pass(ctx, RollbackPass(generation=progress.generation), None)


async def _compensate_execution(
    ctx: restate.ObjectContext, saga: RollbackRequest, steps: dict[int, StepProgress], now: datetime, *, is_alone: bool
) -> timedelta | None:
    """Compensate the due steps of one execution; return the delay until the next pass, or None at its end.

    If other executions have work too, a pass may come for one of them, before the steps of this one are due.
    """
    by_position = {step.position: step for step in saga.steps}
    rounds = 0
    while positions := next_steps(saga.steps, steps, saga.config):
        early = timedelta(0) if is_alone else time_until_due(positions, steps, now)
        if early > timedelta(0):
            return early
        rounds += 1
        if rounds > MAX_ROUNDS:
            return timedelta(0)
        attempts = [await Attempt.start(ctx, saga, by_position[each], steps[each]) for each in positions]
        delay: timedelta | None = None
        for attempt in attempts:
            position = attempt.step.position
            before = steps[position]
            if before.trying_since is None:
                before = before.with_(trying_since=now)
            after = await _after(attempt, before, saga.config, now)
            if after is None:
                before = before.with_(running=attempt.invocation_id)
                if before != steps[position]:
                    steps[position] = before
                    await step_progress_state(ctx, position).set(before)
                delay = max(delay or timedelta(0), delay_while_running(before, now))
                continue
            pause: timedelta | None = None
            if after.state is CompensationState.PENDING:
                retry = saga.config.transient_retry_of(attempt.step.retry)
                pause = scaled(delay_after(after, retry, saga.config))
                delay = max(delay or timedelta(0), pause)
            steps[position] = after = after.with_(due=None if pause is None else now + pause)
            await step_progress_state(ctx, position).set(after)
            if after.unknown_outcomes:
                log.warning(
                    "saga.compensation.unknown_outcome",
                    saga=saga.saga_id,
                    step=attempt.step.step,
                    error=attempt.unknown_outcome,
                )
            else:
                await _report(ctx, saga, attempt.step, after, now)
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
    ctx: restate.ObjectContext, saga: RollbackRequest, step: StepRecord, progress: StepProgress, now: datetime
) -> None:
    log.info(
        "saga.compensation.succeeded" if progress.error is None else "saga.compensation.failed",
        saga=saga.saga_id,
        step=step.step,
        state=progress.state,
        attempts=progress.attempts,
        error=progress.error,
    )
    if not is_replaying(ctx):
        COMPENSATIONS.count(service=saga.service, step=step.step, state=progress.state.value)
    if progress.state is CompensationState.DEAD_LETTER:
        await send_dead_letter(ctx, dead_letter_of(saga, step, progress, now))


async def _schedule_pass(
    ctx: restate.ObjectContext, progress: RollbackProgress, now: datetime, delay: timedelta
) -> None:
    later = progress.model_copy(update={"generation": progress.generation + 1, "updated_at": now})
    await rollback_progress_state(ctx).set(later)
    await _send_pass(ctx, RollbackPass(generation=later.generation), delay)


async def _send_pass(ctx: restate.ObjectContext, this: RollbackPass, delay: timedelta | None) -> None:
    ObjectClient(ctx, _run, ctx.key()).send_scaled(this, delay or None)


async def _end_execution(
    ctx: restate.ObjectContext,
    saga: StoredSaga,
    number: int,
    progress: RollbackProgress,
    steps: dict[int, StepProgress],
) -> RollbackProgress:
    """Report the end of an execution; an operator may reopen it."""
    now = await _now(ctx)
    ended = executions_of(saga)[number - 1]
    report = report_of([ended], steps)
    if report.outcome is RollbackState.ROLLED_BACK:
        for step in ended.steps:
            if step.after_others and steps[step.position].state is CompensationState.PENDING:
                steps[step.position] = steps[step.position].with_(state=CompensationState.SKIPPED)
                await step_progress_state(ctx, step.position).set(steps[step.position])
    for step in ended.steps:
        if steps[step.position].state is CompensationState.DEAD_LETTER:
            await store_dead_letter(ctx, dead_letter_of(ended, step, steps[step.position], now))
    later = progress.model_copy(update={"ended": [*progress.ended, number], "updated_at": now})
    later = await wake_waiters(ctx, saga, later)
    if not is_replaying(ctx):
        ROLLBACKS_ENDED.count(service=ended.service, outcome=report.outcome.value)
    event = "saga.rollback.completed" if report.outcome is RollbackState.ROLLED_BACK else "saga.needs_attention"
    log.info(event, saga=saga.saga_id, compensated=report.undone, dead_letters=report.dead_letters)
    return later


async def _now(ctx: restate.ObjectContext) -> datetime:
    try:
        return await Time(ctx).now()
    except TerminalError as error:
        raise Cancelled("cancelled while reading the clock") from error


def _execution_status(saga: RollbackRequest, steps: dict[int, StepProgress]) -> ExecutionStatus:
    return ExecutionStatus(
        service=saga.service,
        status=rollback_state(saga.steps, steps, saga.config),
        strategy=saga.config.strategy.value,
        reason=saga.reason,
        steps=[
            StepStatus(
                position=step.position,
                step=step.step,
                compensation=None if step.compensation is None else str(step.compensation),
                payload=progress.payload_for(step),
                state=progress.state,
                completed=progress.completed,
                attempts=progress.attempts,
                refusals=progress.refusals,
                lost_starts=progress.unknown_outcomes,
                redriven=progress.redrives,
                error=progress.error,
                next_attempt_at=progress.due if progress.state is CompensationState.PENDING else None,
                trying_since=progress.trying_since,
                invocation_id=progress.invocation_id,
                compensation_invocation_id=progress.running,
            )
            for step in saga.steps
            for progress in (steps[step.position],)
        ],
        execution_ids=saga.execution_ids,
    )

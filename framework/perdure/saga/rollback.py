"""`Rollbacks`: a saga's rollback as an invocation of its own, keyed by the saga's id.

It works in passes. A pass undoes what it can; when it has to wait (a compensation failed and is to be tried again
later, or takes long) it ends and sends itself the next pass with a delay. Between passes the object is free, so status
and an operator's act get through at once; each pass carries a generation, so a stale one does nothing.

Orchestrators reach it through `begin`, a dispatcher: a kill follows calls and sends down the tree, and the tree of the
dispatcher ends with the dispatcher. Compensations go out as one-way sends with an idempotency key for each attempt, and
are then attached to, so that a cancel of this object never cancels a compensation, and running a pass again runs no
compensation again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import restate

from perdure._runtime.sdk import is_replaying
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import is_own_cancel
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import Cancelled, Conflict, NotFound, TerminalError
from perdure.handlers import handler
from perdure.observability.logging import get_logger
from perdure.observability.metrics import COMPENSATIONS, OPERATOR_ACTIONS, ROLLBACKS
from perdure.observability.tracing import annotate, link_to
from perdure.saga.admission import admit
from perdure.saga.dead_letters import ensure, forget, letter_of, remember
from perdure.saga.dispatch import Attempt
from perdure.saga.executions import StoredSaga, execution_number_at, executions_of, is_over, report_of
from perdure.saga.messages import (
    ActionReceipt,
    AuditEntry,
    Pass,
    ReportAnswer,
    ReportQuery,
    RollbackRequest,
    RollbackStatus,
    RunStatus,
    StepAction,
    StepStatus,
)
from perdure.saga.operator_actions import Act, apply_action
from perdure.saga.policy import (
    Outcome,
    SagaConfig,
    StepProgress,
    StepRecord,
    StepState,
    after_doubt,
    after_failure,
    after_success,
    next_steps,
    outcome,
    wait_for,
)
from perdure.saga.retention import Purge, plan_purge, purge_unchanged
from perdure.saga.rollback_state import (
    Head,
    all_progress,
    audit_log_state,
    head_state,
    open_mark,
    progress_state,
    request_state,
)
from perdure.saga.signatures import check_action
from perdure.saga.waits import report_for, wake_waiters

ROUNDS_OF_A_PASS = 20
"""How many steps, or groups, one pass undoes: where each wait is a replay, a pass costs the square of its length."""

log = get_logger("perdure.saga")

rollbacks = restate.VirtualObject(
    "Rollbacks", description="Undoes sagas, step by step, whatever happens to their orchestrators."
)


@handler(rollbacks, "shared", ingress_private=True)
async def begin(ctx: restate.ObjectSharedContext, request: RollbackRequest) -> None:
    """Start a saga's rollback, out of reach of whatever happens to the caller."""
    annotate(saga_id=ctx.key())
    link_to(request.trace)
    if request.saga_id != ctx.key():
        raise Conflict(f"the saga '{request.saga_id}' was sent to the rollback of '{ctx.key()}'")
    await ObjectClient(ctx, run, ctx.key()).send(Pass(request=request))


@handler(rollbacks, "exclusive", ingress_private=True)
async def run(ctx: restate.ObjectContext, this: Pass) -> None:
    """Do one pass."""
    annotate(saga_id=ctx.key())
    link_to(None if this.request is None else this.request.trace)
    is_taken = this.request is None
    try:
        now = await _now(ctx)
        known, head = await request_state(ctx).get(), await head_state(ctx).get()
        if known is not None and this.request is None:
            link_to(known.trace)
        is_taken = True  # what takes it writes before it waits for anything
        await _run_pass(ctx, this, known, head, now)
    except TerminalError as error:
        if not is_own_cancel(error):
            raise
        # A rollback is not to be lost by a cancel: an operator who wants a step left alone says so for that step.
        if not is_taken:
            await _send_pass(ctx, this, None)
        elif (head := await head_state(ctx).get()) is not None:
            await _send_pass(ctx, Pass(generation=head.generation), None)


@handler(rollbacks, "exclusive", ingress_private=True)
async def resume(ctx: restate.ObjectContext) -> None:
    """Go on with a rollback whose next pass was lost, as when somebody killed it."""
    head = await head_state(ctx).get()
    if head is not None:
        await _send_pass(ctx, Pass(generation=head.generation), None)


async def _run_pass(
    ctx: restate.ObjectContext, this: Pass, known: StoredSaga | None, head: Head | None, now: datetime
) -> None:
    if this.request is not None:
        is_new = known is None
        admission = await admit(ctx, this.request, known, head, now)
        known, head = admission.saga, admission.head
        if admission.has_work and not is_new:  # the pass that is scheduled, if any, knows nothing of these steps
            await _come_back(ctx, head, now, timedelta(0))
            return
        if not admission.has_work:
            if admission.has_waiter:
                await wake_waiters(ctx, known, head)
            return
    elif known is None or head is None or this.generation != head.generation:
        return
    await _work(ctx, known, head, await all_progress(ctx, known), now)


async def _work(
    ctx: restate.ObjectContext, saga: StoredSaga, head: Head, progress: dict[int, StepProgress], now: datetime
) -> None:
    """Undo what can be undone now, of the last run first; come back later for the rest, or finish."""
    runs = executions_of(saga)
    is_alone = sum(not is_over(each, progress) for each in runs) == 1
    waits: list[timedelta] = []
    for number, each in reversed(list(enumerate(runs, start=1))):
        wait = await _undo(ctx, each, progress, now, is_alone=is_alone)
        if wait is not None:
            waits.append(wait)
        elif number not in head.ended:
            head = await _end(ctx, saga, number, head, progress)
    if waits:
        await _come_back(ctx, head, now, min(waits))
        return
    await open_mark(ctx).clear()
    await plan_purge(ctx, head, report_of(runs, progress).outcome)


@handler(rollbacks, "exclusive", name="forget", ingress_private=True)
async def purge_rollback(ctx: restate.ObjectContext, this: Purge) -> bool:
    """Forget a rollback that is over and has not changed since; tell if it did."""
    return await purge_unchanged(ctx, this)


async def _undo(
    ctx: restate.ObjectContext,
    saga: RollbackRequest,
    progress: dict[int, StepProgress],
    now: datetime,
    *,
    is_alone: bool,
) -> timedelta | None:
    """Undo what can be undone of one run now.

    Args:
        ctx: A context of the saga's rollback.
        saga: The run.
        progress: The rollback of each step, by position; changed.
        now: The time.
        is_alone: Whether no other run is at work, so that this pass can't have come for the sake of another.

    Returns:
        When to come back for the rest; None when there is nothing left to try.
    """
    by_position = {step.position: step for step in saga.steps}
    rounds = 0
    while positions := next_steps(saga.steps, progress, saga.config):
        early = timedelta(0) if is_alone else wait_for(positions, progress, now)
        if early > timedelta(0):
            return early
        rounds += 1
        if rounds > ROUNDS_OF_A_PASS:
            return timedelta(0)
        attempts = [await Attempt.start(ctx, saga, by_position[each], progress[each]) for each in positions]
        delay: timedelta | None = None
        for attempt in attempts:
            position = attempt.step.position
            after = await _after(attempt, progress[position], saga.config)
            if after is None:
                delay = delay or timedelta(0)
                continue
            pause: timedelta | None = None
            if after.state is StepState.PENDING:
                pause = scaled(saga.config.retry.delay_after(after.doubts or after.attempts))
                delay = max(delay or timedelta(0), pause)
            progress[position] = after = after.with_(due=None if pause is None else now + pause)
            await progress_state(ctx, position).set(after)
            if after.doubts:
                log.warning("saga.compensation.in_doubt", saga=saga.saga_id, step=attempt.step.step, why=attempt.doubt)
            else:
                await _report(ctx, saga, attempt.step, after, now)
        if delay is not None:
            return delay
    return None


async def _after(attempt: Attempt, before: StepProgress, config: SagaConfig) -> StepProgress | None:
    """Return a step's progress after an attempt; None when that goes on."""
    if attempt.doubt is not None:
        return after_doubt(before, attempt.doubt, config)
    if not await attempt.ended():
        return None
    error = await attempt.error()
    if error is None:
        return after_success(before)
    failed = after_failure(before, error, config)
    return failed if attempt.is_started else failed.with_(doubted=before.doubted)


async def _report(
    ctx: restate.ObjectContext, saga: RollbackRequest, step: StepRecord, progress: StepProgress, now: datetime
) -> None:
    event = "saga.compensation.succeeded" if progress.error is None else "saga.compensation.failed"
    log.info(
        event,
        saga=saga.saga_id,
        step=step.step,
        state=progress.state,
        attempts=progress.attempts,
        error=progress.error,
    )
    if not is_replaying(ctx):
        COMPENSATIONS.count(service=saga.service, step=step.step, state=progress.state.value)
    if progress.state is StepState.DEAD_LETTER:
        await remember(ctx, letter_of(saga, step, progress, now))


async def _come_back(ctx: restate.ObjectContext, head: Head, now: datetime, delay: timedelta) -> None:
    later = head.model_copy(update={"generation": head.generation + 1, "updated_at": now})
    await head_state(ctx).set(later)
    await _send_pass(ctx, Pass(generation=later.generation), delay)


async def _send_pass(ctx: restate.ObjectContext, later: Pass, delay: timedelta | None) -> None:
    await ObjectClient(ctx, run, ctx.key()).send(later, delay=delay or None)


async def _end(
    ctx: restate.ObjectContext, saga: StoredSaga, number: int, head: Head, progress: dict[int, StepProgress]
) -> Head:
    """Tell of the end of a run, which an operator may take up again."""
    now = await _now(ctx)
    ended = executions_of(saga)[number - 1]
    found = report_of([ended], progress)
    if found.outcome is Outcome.ROLLED_BACK:
        for step in ended.steps:
            if step.after_others and progress[step.position].state is StepState.PENDING:
                progress[step.position] = progress[step.position].with_(state=StepState.SKIPPED)
                await progress_state(ctx, step.position).set(progress[step.position])
    for step in ended.steps:
        if progress[step.position].state is StepState.DEAD_LETTER:
            await ensure(ctx, letter_of(ended, step, progress[step.position], now))
    later = head.model_copy(update={"ended": [*head.ended, number], "updated_at": now})
    later = await wake_waiters(ctx, saga, later)
    if not is_replaying(ctx):
        ROLLBACKS.count(service=ended.service, outcome=found.outcome.value)
    event = "saga.compensation.completed" if found.outcome is Outcome.ROLLED_BACK else "saga.needs_attention"
    log.info(event, saga=saga.saga_id, undone=found.undone, dead_letters=found.dead_letters)
    return later


async def _now(ctx: restate.ObjectContext) -> datetime:
    try:
        return await Time(ctx).now()
    except TerminalError as error:
        raise Cancelled("cancelled during a reading of the clock") from error


@handler(rollbacks, "exclusive", ingress_private=True)
async def act(ctx: restate.ObjectContext, request: StepAction) -> ActionReceipt:
    """Do what an operator decided about a step that could not be undone, and write it into the audit log."""
    now = await _now(ctx)
    saga, head = await request_state(ctx).get(), await head_state(ctx).get()
    step = next((each for each in saga.steps if each.position == request.position), None) if saga else None
    if saga is None or head is None or step is None:
        raise NotFound(f"no dead letter '{ctx.key()}/{request.position}'", metadata={"field": "id"})
    before = await progress_state(ctx, step.position).get() or StepProgress()
    checked = await check_action(ctx, request, payload=before.payload_for(step), redriven=before.drive, now=now)
    if request.act is Act.REDRIVE and step.compensation is None:
        raise Conflict(f"step '{step.step}' has no compensation to redrive: finish it by hand, then resolve it")
    letter_id = f"{saga.saga_id}/{step.position}"
    if before.state is not StepState.DEAD_LETTER:  # what was to remove it may have been killed
        await forget(ctx, letter_id)
    after = apply_action(before, request.act, step.step, request.payload)
    number = execution_number_at(saga, step.position)
    ended = [each for each in head.ended if each != number or after == before]
    later = head.model_copy(update={"acts": head.acts + 1, "updated_at": now, "ended": ended})
    await checked.keep(ctx)
    await audit_log_state(ctx, later.acts).set(
        AuditEntry(
            number=later.acts,
            at=now,
            actor=checked.actor,
            act=request.act,
            step=step.step,
            position=step.position,
            reason=request.reason,
            before=before.state,
            after=after.state,
            payload=request.payload,
            proof=request.proof,
        )
    )
    log.info("saga.act", saga=saga.saga_id, step=step.step, act=request.act, actor=checked.actor, state=after.state)
    if not is_replaying(ctx):
        OPERATOR_ACTIONS.count(service=executions_of(saga)[number - 1].service, action=request.act.value)
    await head_state(ctx).set(later)
    if after != before:
        await open_mark(ctx).set(True)  # first: killed after it, the rollback is set going again
        await progress_state(ctx, step.position).set(after)
        await forget(ctx, letter_id)
        await _come_back(ctx, later, now, timedelta(0))
    return ActionReceipt(id=letter_id, act=request.act, state=after.state, number=later.acts)


@handler(rollbacks, "shared", ingress_private=True)
async def report(ctx: restate.ObjectSharedContext, query: ReportQuery) -> ReportAnswer:
    """Tell a waiter how an execution's rollback ended."""
    return await report_for(ctx, query)


@handler(rollbacks, "shared", read_only=True, ingress_private=False)
async def status(ctx: restate.ObjectSharedContext) -> RollbackStatus:
    """Show a saga's rollback, step by step."""
    request, head = await request_state(ctx).get(), await head_state(ctx).get()
    if request is None or head is None:
        raise NotFound(f"no rollback of a saga '{ctx.key()[:200]}'", metadata={"saga": ctx.key()[:200]})
    progress = await all_progress(ctx, request)
    *earlier, last = [_shown(each, progress) for each in executions_of(request)]
    return RollbackStatus(
        **{**dict(last), "runs": request.runs},
        saga_id=request.saga_id,
        started_at=head.started_at,
        updated_at=head.updated_at,
        earlier=earlier,
        audit_log=[entry for number in range(1, head.acts + 1) if (entry := await audit_log_state(ctx, number).get())],
    )


def _shown(saga: RollbackRequest, progress: dict[int, StepProgress]) -> RunStatus:
    return RunStatus(
        service=saga.service,
        status=outcome(saga.steps, progress, saga.config),
        strategy=saga.config.strategy.value,
        reason=saga.reason,
        steps=[
            StepStatus(
                position=step.position,
                step=step.step,
                compensation=None if step.compensation is None else str(step.compensation),
                payload=progress[step.position].payload_for(step),
                state=progress[step.position].state,
                completed=progress[step.position].completed,
                attempts=progress[step.position].attempts,
                redriven=progress[step.position].drive,
                invocation_id=progress[step.position].invocation_id,
                error=progress[step.position].error,
            )
            for step in saga.steps
        ],
        runs=saga.runs,
    )

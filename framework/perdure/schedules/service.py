"""`Schedules`: one schedule per key, which sends itself its next firing with a delay. `ScheduleIndex`: all of them.

A firing carries the schedule's generation. Pausing, resuming, replacing and removing a schedule start a new generation,
so earlier firings are ignored. The clock is read, and the decision made, in one run, so that a replay repeats the
decision even after an update of the time zone data. The dispatcher starts the targets, so that a missing or slow target
does not block the schedule.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final

import restate

from perdure._runtime.waiting import is_own_cancel
from perdure.clients import ObjectClient, ServiceClient
from perdure.determinism import Time
from perdure.engine.catalog import find_problem
from perdure.errors import (
    CODE_KEY,
    Conflict,
    InvalidInput,
    NotFound,
    PerdureTerminalError,
    Refused,
    TerminalError,
    UnreadableValue,
    error_code,
)
from perdure.handlers import Definition, handler
from perdure.observability.logging import get_logger
from perdure.runs import RunConfig, run_with_retry
from perdure.schedules.dispatcher import ScheduleDispatcher
from perdure.schedules.messages import (
    INDEX_KEY,
    MAX_NAME_LENGTH,
    Firing,
    RunCause,
    RunReport,
    RunRequest,
    RunState,
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleCommand,
    ScheduleCounts,
    ScheduledRun,
    ScheduleListRequest,
    SchedulePage,
    ScheduleRequest,
    ScheduleStatus,
    UnreadableSchedule,
    fire_target,
    index_add_target,
    index_remove_target,
    report_target,
    run_target,
    status_target,
)
from perdure.schedules.recurrence import (
    MAX_ACTIVE_RUNS,
    FiringDecision,
    Overlap,
    ScheduleSpec,
    decide_firing,
    format_utc,
    next_firing,
)
from perdure.schedules.schema import INDEX_PREFIX, ScheduleProgress
from perdure.schedules.signatures import authorize, schedule_digest, spec_digest
from perdure.schedules.store import StoredSchedule
from perdure.state import State

MAX_RECENT_RUNS: Final = 20
INTERNAL_SERVICES: Final = frozenset(
    {
        "AlertDispatcher",
        "Alerts",
        "ApprovalInbox",
        "ApprovalDispatcher",
        "ApprovalReconciler",
        "Approvals",
        "DeadLetterIndex",
        "DeadLetters",
        "ExecutionRollbacks",
        "HeldStepIndex",
        "HeldSteps",
        "Principals",
        "RollbackDispatcher",
        "Rollbacks",
        "ScheduleIndex",
        "ScheduleDispatcher",
        "Schedules",
        "SagaHeldSteps",
        "SagaOperations",
        "SagaReconciler",
    }
)
"""Perdure's own services, which cannot be scheduled: a schedule would bypass their access checks."""

COMPENSATION_SUFFIX: Final = "Compensations"
"""Suffix of the names of services with compensations, which only the rollback starts."""

_CHECK: Final = RunConfig("check the target", max_retries=5)

log = get_logger("perdure.schedule")


def _utc_now() -> datetime:
    return datetime.now(UTC)


async def _decide(ctx: restate.ObjectContext, decision: Callable[[datetime], FiringDecision]) -> FiringDecision:
    """Read the clock and decide in one run."""
    return await run_with_retry(ctx, "decide", lambda: decision(_utc_now()), returns=FiringDecision)


def _first_firing(spec: ScheduleSpec, anchor: datetime | None, now: datetime) -> FiringDecision:
    return FiringDecision(now=now, next_at=next_firing(spec, now, anchor or now))


# --- operator actions ------------------------------------------------------------------------------------------------


async def _set(schedule: StoredSchedule, spec: ScheduleSpec, request: ScheduleActionRequest) -> ScheduleStatus:
    if schedule.exists and schedule.spec == spec:
        return await schedule.status()
    first = await _decide(schedule.ctx, partial(_first_firing, spec, None))
    await ObjectClient(schedule.ctx, index_add_target, INDEX_KEY).call(schedule.name)
    progress = ScheduleProgress(anchor=first.now, created_at=first.now, updated_at=first.now)
    if schedule.exists:
        progress = schedule.progress
        if not spec.has_same_timing(schedule.spec):
            progress = progress.model_copy(update={"anchor": first.now})
        elif progress.next_at is not None:  # a schedule that is set repeatedly must still fire
            first = first.model_copy(update={"next_at": progress.next_at})
    await _restart(schedule, spec, progress, first)
    await schedule.append_audit_entry(ScheduleAction.SET, request, first.now)
    return await schedule.status()


async def _restart(
    schedule: StoredSchedule, spec: ScheduleSpec, progress: ScheduleProgress, first: FiringDecision
) -> None:
    """Start a generation, and send its first firing unless the schedule is paused."""
    await schedule.start_generation()
    next_at = None if progress.paused else first.next_at
    await schedule.save(spec, progress.model_copy(update={"next_at": next_at, "updated_at": first.now}))
    schedule.send_next_firing(first.now)


async def _pause(schedule: StoredSchedule, request: ScheduleActionRequest) -> ScheduleStatus:
    """Stop the firings of a schedule until it is resumed; active runs continue."""
    if schedule.progress.paused:
        return await schedule.status()
    now = await Time(schedule.ctx).now()
    paused = schedule.progress.model_copy(update={"paused": True})
    await _restart(schedule, schedule.spec, paused, FiringDecision(now=now))
    await schedule.append_audit_entry(ScheduleAction.PAUSE, request, now)
    return await schedule.status()


async def _resume(schedule: StoredSchedule, request: ScheduleActionRequest) -> ScheduleStatus:
    """Resume a paused schedule; firings during the pause are not caught up.

    Resuming an active schedule repairs it after a kill of its firing or of its dispatcher: the next firing is sent
    again, and active runs end with the state ``unknown``.
    """
    spec, progress = schedule.spec, schedule.progress
    first = await _decide(schedule.ctx, partial(_first_firing, spec, progress.anchor))
    if not progress.paused:
        lost = [run.model_copy(update={"state": RunState.UNKNOWN, "ended_at": first.now}) for run in progress.active]
        recent = [*reversed(lost), *progress.recent][:MAX_RECENT_RUNS]
        progress = progress.model_copy(update={"active": [], "recent": recent})
    await _restart(schedule, spec, progress.model_copy(update={"paused": False}), first)
    await schedule.append_audit_entry(ScheduleAction.RESUME, request, first.now)
    return await schedule.status()


async def _trigger(schedule: StoredSchedule, request: ScheduleActionRequest) -> ScheduleStatus:
    """Start a run now, even if the schedule is paused; the next firing is unchanged."""
    spec, progress = schedule.spec, schedule.progress
    if _is_busy(spec, progress):
        active = progress.active[0]
        raise Conflict(
            f"schedule '{schedule.name}': run {active.id} is active, and its overlap policy is '{spec.overlap}'; "
            f"wait for the run, or cancel {active.invocation_id or 'it'}",
            metadata={"run": active.id},
        )
    now = await Time(schedule.ctx).now()
    progress = await _start(schedule, progress, now, RunCause.TRIGGER, now)
    await schedule.save(spec, progress.model_copy(update={"updated_at": now}))
    await schedule.append_audit_entry(ScheduleAction.TRIGGER, request, now)
    return await schedule.status()


async def _remove(schedule: StoredSchedule, request: ScheduleActionRequest) -> ScheduleStatus:
    """Remove a schedule and return its last status; active runs continue."""
    status = await schedule.status()
    now = await Time(schedule.ctx).now()
    await schedule.start_generation()
    await schedule.append_audit_entry(ScheduleAction.REMOVE, request, now)
    await schedule.delete()
    await ObjectClient(schedule.ctx, index_remove_target, INDEX_KEY).call(schedule.name)
    return status


_ACTIONS: Final[dict[ScheduleAction, Callable[[StoredSchedule, ScheduleActionRequest], Awaitable[ScheduleStatus]]]] = {
    ScheduleAction.PAUSE: _pause,
    ScheduleAction.RESUME: _resume,
    ScheduleAction.TRIGGER: _trigger,
    ScheduleAction.REMOVE: _remove,
}


# --- firings and runs ------------------------------------------------------------------------------------------------


async def _fire(ctx: restate.ObjectContext, firing: Firing) -> None:
    """Start the runs that are due, and send the next firing."""
    schedule = await StoredSchedule.load(ctx)
    if not schedule.exists:
        return
    spec, progress = schedule.spec, schedule.progress
    if (firing.generation, firing.planned) != (schedule.sequence.generation, progress.next_at):
        return
    try:
        decision = await _decide(ctx, lambda now: decide_firing(spec, firing.planned, now, progress.anchor))
    except TerminalError as error:
        if is_own_cancel(error):  # a cancelled firing must not stop the schedule; `pause` does that
            await ObjectClient(ctx, fire_target, ctx.key()).send(firing)
            return
        lost = f"the firing planned for {format_utc(firing.planned)} was lost; resume the schedule: {error.message}"
        await schedule.save(spec, progress.model_copy(update={"last_error": lost}))
        raise
    overlapped = 0
    for planned in decision.due:
        if _is_busy(spec, progress):
            overlapped += 1
            continue
        late = decision.now - planned > spec.tolerance
        progress = await _start(schedule, progress, planned, RunCause.CATCH_UP if late else RunCause.DUE, decision.now)
    counts = _increment(progress.counts, missed=decision.missed, overlapped=overlapped)
    progress = progress.model_copy(update={"counts": counts, "next_at": decision.next_at, "updated_at": decision.now})
    await schedule.save(spec, progress)
    schedule.send_next_firing(decision.now)
    log.info(
        "schedule.fired",
        schedule=schedule.name,
        planned=format_utc(firing.planned),
        started=len(decision.due) - overlapped,
        missed=decision.missed,
        overlapped=overlapped,
    )


def _is_busy(spec: ScheduleSpec, progress: ScheduleProgress) -> bool:
    return len(progress.active) >= (1 if spec.overlap is Overlap.SKIP else MAX_ACTIVE_RUNS)


async def _start(
    schedule: StoredSchedule, progress: ScheduleProgress, planned: datetime, cause: RunCause, now: datetime
) -> ScheduleProgress:
    """Send a run to the dispatcher, and return the progress that contains it."""
    spec = schedule.spec
    suffix = f"/{cause}" if cause is RunCause.TRIGGER else ""
    run = ScheduledRun(
        id=f"{schedule.name}/{schedule.sequence.generation}/{format_utc(planned)}{suffix}",
        planned=planned,
        cause=cause,
        started_at=now,
    )
    key = spec.target.resolve_key(schedule.name, planned, spec.timezone)
    request = RunRequest(
        schedule=schedule.name,
        run_id=run.id,
        target=spec.target.model_copy(update={"key": key}),
        payload=spec.payload,
        planned=planned,
    )
    await ServiceClient(schedule.ctx, run_target).send(request)
    return progress.model_copy(
        update={"active": [*progress.active, run], "counts": _increment(progress.counts, started=1)}
    )


async def _report(ctx: restate.ObjectContext, report: RunReport) -> None:
    """Record the state of a run."""
    schedule = await StoredSchedule.load(ctx)
    active = schedule.progress.active if schedule.exists else []
    run = next((run for run in active if run.id == report.run_id), None)
    if run is None:  # the schedule was removed or resumed
        return
    progress = schedule.progress
    try:
        now = await Time(ctx).now()
    except TerminalError as error:
        if not is_own_cancel(error):
            raise
        await ObjectClient(ctx, report_target, ctx.key()).send(report)
        return
    updated = run.model_copy(update=report.model_dump(include={"state", "invocation_id", "error"}, exclude_none=True))
    if report.state is RunState.RUNNING:
        active = [updated if each.id == run.id else each for each in active]
        await schedule.save(schedule.spec, progress.model_copy(update={"active": active, "updated_at": now}))
        return
    failed = report.state in (RunState.FAILED, RunState.NOT_STARTED)
    ended = updated.model_copy(update={"ended_at": now})
    changes: dict[str, Any] = {
        "active": [each for each in active if each.id != run.id],
        "recent": [ended, *progress.recent][:MAX_RECENT_RUNS],
        "counts": _increment(progress.counts, failed=int(failed), succeeded=int(report.state is RunState.SUCCEEDED)),
        "updated_at": now,
    }
    if failed:
        changes["last_error"] = report.error
        log.warning("schedule.run_failed", schedule=schedule.name, run=run.id, state=report.state, error=report.error)
    await schedule.save(schedule.spec, progress.model_copy(update=changes))


def _increment(counts: ScheduleCounts, **amounts: int) -> ScheduleCounts:
    return counts.model_copy(update={name: getattr(counts, name) + amount for name, amount in amounts.items()})


# --- services --------------------------------------------------------------------------------------------------------


def definitions(*, targets: Sequence[str] = ("*",), check_targets: bool = True) -> list[Definition]:
    """Return the services of schedules: `Schedules`, `ScheduleIndex` and `ScheduleDispatcher`.

    Args:
        targets: The handlers that may be scheduled, as patterns of ``Service/handler`` such as ``Reports/*``. A
            schedule also starts handlers that are private at the ingress, so restrict this where others reach the
            ingress. Perdure's own services cannot be scheduled.
        check_targets: Compare target, key and payload with the registered handlers when a schedule is set. It requires
            PERDURE_ADMIN_URL.
    """
    return [
        Schedules(targets, check_targets=check_targets).definition,
        ScheduleIndex().definition,
        ScheduleDispatcher().definition,
    ]


class Schedules:
    """Handlers of `Schedules`."""

    def __init__(self, targets: Sequence[str], *, check_targets: bool) -> None:
        self._targets = tuple(targets)
        self._check_targets = check_targets
        self.definition = restate.VirtualObject("Schedules", description="Starts handlers at planned times, durably.")
        handler(self.definition, "exclusive", name="set", ingress_private=False)(self.set_)
        for action in _ACTIONS:
            handler(self.definition, "exclusive", name=action.value, ingress_private=False)(_action_handler(action))
        handler(self.definition, "shared", name="status", read_only=True, ingress_private=False)(_status)
        handler(self.definition, "exclusive", ingress_private=True)(self.apply)
        handler(self.definition, "exclusive", name="fire", ingress_private=True)(_fire)
        handler(self.definition, "exclusive", name="report", ingress_private=True)(_report)

    async def _check(self, ctx: restate.ObjectContext, spec: ScheduleSpec) -> None:
        _check_name(ctx.key())
        _check_target(spec, self._targets)
        if self._check_targets:
            await _check_registered(ctx, spec)

    async def set_(self, ctx: restate.ObjectContext, request: ScheduleRequest) -> ScheduleStatus:
        """Create or replace a schedule; a paused one stays paused, an equal one is unchanged."""
        spec = request.spec
        await self._check(ctx, spec)
        schedule = await StoredSchedule.load(ctx)
        await authorize(ctx, ScheduleAction.SET, request, spec_digest(spec))
        return await _set(schedule, spec, request)

    async def apply(self, ctx: restate.ObjectContext, command: ScheduleCommand) -> ScheduleStatus:
        """Apply the action of a handler, which needs no signature."""
        request = ScheduleActionRequest(actor=command.actor, reason=command.reason)
        if command.action is not ScheduleAction.SET:
            return await _ACTIONS[command.action](await StoredSchedule.load(ctx), request)
        if command.spec is None:
            raise InvalidInput("spec: missing; the action 'set' requires it", metadata={"field": "spec"})
        await self._check(ctx, command.spec)
        return await _set(await StoredSchedule.load(ctx), command.spec, request)


def _action_handler(
    action: ScheduleAction,
) -> Callable[[restate.ObjectContext, ScheduleActionRequest], Awaitable[ScheduleStatus]]:
    async def apply(ctx: restate.ObjectContext, request: ScheduleActionRequest) -> ScheduleStatus:
        schedule = await StoredSchedule.load(ctx)
        digest = schedule_digest(schedule.spec, schedule.sequence.generation)
        await authorize(ctx, action, request, digest)
        return await _ACTIONS[action](schedule, request)

    apply.__doc__ = _ACTIONS[action].__doc__
    return apply


async def _status(ctx: restate.ObjectSharedContext) -> ScheduleStatus:
    """Return the status of a schedule."""
    try:
        return await (await StoredSchedule.load(ctx)).status()
    except UnreadableValue as error:  # a caller must not wait until this process has the key
        raise PerdureTerminalError(str(error), metadata={CODE_KEY: "unreadable_state"}) from error


class ScheduleIndex:
    """Handlers of `ScheduleIndex`."""

    def __init__(self) -> None:
        self.definition = restate.VirtualObject(
            "ScheduleIndex", description="Index of all schedules.", enable_lazy_state=True
        )
        handler(self.definition, "exclusive", ingress_private=True)(self.add)
        handler(self.definition, "exclusive", ingress_private=True)(self.remove)
        handler(self.definition, "shared", name="list", read_only=True, ingress_private=False)(self.list_)

    async def add(self, ctx: restate.ObjectContext, name: str) -> None:
        """Add a schedule to the index."""
        await State(ctx, INDEX_PREFIX + name, bool).set(True)

    async def remove(self, ctx: restate.ObjectContext, name: str) -> None:
        """Remove a schedule from the index."""
        await State(ctx, INDEX_PREFIX + name, bool).clear()

    async def list_(self, ctx: restate.ObjectSharedContext, request: ScheduleListRequest) -> SchedulePage:
        """List schedules, sorted by name."""
        names = sorted(
            name.removeprefix(INDEX_PREFIX) for name in await ctx.state_keys() if name.startswith(INDEX_PREFIX)
        )
        first = (request.page - 1) * request.page_size
        calls = {
            name: ObjectClient(ctx, status_target, name).call_async()
            for name in names[first : first + request.page_size]
        }
        items: list[ScheduleStatus] = []
        unreadable: list[UnreadableSchedule] = []
        for name, call in calls.items():
            try:
                items.append(await call)
            except TerminalError as error:
                if is_own_cancel(error):
                    raise
                if error_code(error) != NotFound.code:  # removed since the index was read
                    unreadable.append(UnreadableSchedule(name=name, error=error.message))
        pages = max(1, -(-len(names) // request.page_size))
        return SchedulePage(items=items, unreadable=unreadable, total=len(names), page=request.page, pages=pages)


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidInput(
            f"the name of a schedule must have 1 to {MAX_NAME_LENGTH} printable characters; got {len(name)}, "
            f"beginning with {name[:20]!r}",
            metadata={"field": "name"},
        )


async def _check_registered(ctx: restate.ObjectContext, spec: ScheduleSpec) -> None:
    """Refuse a target that is not registered, or does not accept the key or the payload."""
    target = spec.target
    found = await run_with_retry(ctx, _CHECK, find_problem, target.service, target.handler, target.key, spec.payload)
    if found is not None:
        field = "target.key" if found[0] == "key" else found[0]
        raise InvalidInput(f"{field}: {found[1]}", metadata={"field": field})


def _check_target(spec: ScheduleSpec, allowed: Sequence[str]) -> None:
    target = f"{spec.target.service}/{spec.target.handler}"
    if spec.target.service in INTERNAL_SERVICES or spec.target.service.endswith(COMPENSATION_SUFFIX):
        raise Refused(f"{target} is an internal handler of perdure and cannot be scheduled", 403, "target_refused")
    if not any(fnmatchcase(target, pattern) for pattern in allowed):
        raise Refused(
            f"{target} may not be scheduled; allowed: {', '.join(allowed) or 'none'}. To allow it, change "
            "`definitions(targets=...)` where Schedules is served",
            403,
            "target_refused",
        )

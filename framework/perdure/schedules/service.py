"""`Schedules`: one schedule for each key, which sends itself its next firing with a delay.

A firing carries the schedule's generation; pausing, resuming, replacing and removing raise it, so what was on its way
before does nothing. The clock is read and the decision made in one run, so a replay sees the same even after an update
of the time zones. What a firing starts goes through the dispatcher: neither a target that is gone nor a slow one holds
up the schedule.
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
from perdure.errors import Conflict, InvalidInput, Refused, TerminalError
from perdure.handlers import handler
from perdure.observability.logging import get_logger
from perdure.runs import run_with_retry
from perdure.schedules.messages import (
    INDEX_KEY,
    MAX_NAME_LENGTH,
    Firing,
    RunCause,
    RunOrder,
    RunReport,
    RunState,
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleCounts,
    ScheduledRun,
    ScheduleOrder,
    ScheduleRequest,
    ScheduleStatus,
    drop_target,
    fire_target,
    put_target,
    report_target,
    run_target,
)
from perdure.schedules.recurrence import MOST_AT_ONCE, FiringPlan, Overlap, ScheduleSpec, decide, next_after, stamp
from perdure.schedules.signatures import Admitted, admit, shown_schedule, shown_setting
from perdure.schedules.store import Head, StoredSchedule

RECENT: Final = 20
"""How many ended runs a status shows."""
INTERNAL: Final = frozenset(
    {
        "AlertDispatcher",
        "Alerts",
        "ApprovalInbox",
        "ApprovalDispatcher",
        "ApprovalReconciler",
        "Approvals",
        "DeadLetterIndex",
        "DeadLetters",
        "Principals",
        "RollbackDispatcher",
        "Rollbacks",
        "ScheduleIndex",
        "ScheduleDispatcher",
        "Schedules",
        "SagaReconciler",
    }
)
"""Perdure's own services: whoever may set a schedule could do through them what only these, or an operator, may do."""

COMPENSATIONS: Final = "Compensations"
"""How the names of those end that undo the steps of sagas, which is for `Rollbacks` alone to start."""

log = get_logger("perdure.schedule")


def _utc_now() -> datetime:
    return datetime.now(UTC)


async def _decided(ctx: restate.ObjectContext, decision: Callable[[datetime], FiringPlan]) -> FiringPlan:
    """Read the clock and decide by it, in one run."""
    return await run_with_retry(ctx, "decide", lambda: decision(_utc_now()), returns=FiringPlan)


def _first(spec: ScheduleSpec, anchor: datetime | None, now: datetime) -> FiringPlan:
    return FiringPlan(now=now, next_at=next_after(spec, now, anchor or now))


async def _status(ctx: restate.ObjectSharedContext) -> ScheduleStatus:
    """Show a schedule."""
    return await (await StoredSchedule.read(ctx)).status()


async def _set(schedule: StoredSchedule, spec: ScheduleSpec, by: Admitted) -> ScheduleStatus:
    if schedule.exists and schedule.spec == spec:
        return await schedule.status()
    first = await _decided(schedule.ctx, partial(_first, spec, None))
    await ObjectClient(schedule.ctx, put_target, INDEX_KEY).call(schedule.name)
    head = Head(anchor=first.now, created_at=first.now, updated_at=first.now)
    if schedule.exists:
        head = schedule.head
        if not spec.fires_like(schedule.spec):
            head = head.model_copy(update={"anchor": first.now})
        elif head.next_at is not None:  # or one that is set anew again and again would never fire
            first = first.model_copy(update={"next_at": head.next_at})
    await _restart(schedule, spec, head, first)
    await schedule.note(ScheduleAction.SET, by, first.now)
    return await schedule.status()


async def _restart(schedule: StoredSchedule, spec: ScheduleSpec, head: Head, first: FiringPlan) -> None:
    """Begin a generation, with its first firing unless the schedule is paused."""
    await schedule.begin_generation()
    next_at = None if head.paused else first.next_at
    await schedule.write(spec, head.model_copy(update={"next_at": next_at, "updated_at": first.now}))
    schedule.send_firing(first.now)


async def _pause(schedule: StoredSchedule, by: Admitted) -> ScheduleStatus:
    """Let a schedule fire no more until it is resumed. Runs that are going on go on."""
    if schedule.head.paused:
        return await schedule.status()
    now = await Time(schedule.ctx).now()
    await _restart(schedule, schedule.spec, schedule.head.model_copy(update={"paused": True}), FiringPlan(now=now))
    await schedule.note(ScheduleAction.PAUSE, by, now)
    return await schedule.status()


async def _resume(schedule: StoredSchedule, by: Admitted) -> ScheduleStatus:
    """Let a paused schedule fire again; what fell into the pause is not caught up.

    One that is not paused begins anew: its next firing is sent again, and runs it believes to be going on are
    forgotten. That mends a schedule whose firing, or the watching of whose run, somebody killed.
    """
    spec, head = schedule.spec, schedule.head
    first = await _decided(schedule.ctx, partial(_first, spec, head.anchor))
    if not head.paused:
        lost = [each.model_copy(update={"state": RunState.UNKNOWN, "ended_at": first.now}) for each in head.active]
        head = head.model_copy(update={"active": [], "recent": [*reversed(lost), *head.recent][:RECENT]})
    await _restart(schedule, spec, head.model_copy(update={"paused": False}), first)
    await schedule.note(ScheduleAction.RESUME, by, first.now)
    return await schedule.status()


async def _trigger(schedule: StoredSchedule, by: Admitted) -> ScheduleStatus:
    """Start a run now, paused or not; the next firing stays as it is."""
    spec, head = schedule.spec, schedule.head
    if _is_busy(spec, head):
        raise Conflict(
            f"schedule '{schedule.name}': run {head.active[0].id} is still going, and runs may not overlap "
            f"(overlap: {spec.overlap}); wait for it, or cancel {head.active[0].invocation_id or 'it'}",
            metadata={"run": head.active[0].id},
        )
    now = await Time(schedule.ctx).now()
    head = await _start(schedule, head, now, RunCause.TRIGGER, now)
    await schedule.write(spec, head.model_copy(update={"updated_at": now}))
    await schedule.note(ScheduleAction.TRIGGER, by, now)
    return await schedule.status()


async def _remove(schedule: StoredSchedule, by: Admitted) -> ScheduleStatus:
    """Remove a schedule, and return it as it was. Runs that are going on go on."""
    status = await schedule.status()
    now = await Time(schedule.ctx).now()
    await schedule.begin_generation()
    await schedule.note(ScheduleAction.REMOVE, by, now)
    await schedule.clear()
    await ObjectClient(schedule.ctx, drop_target, INDEX_KEY).call(schedule.name)
    return status


_STEERS: Final[dict[ScheduleAction, Callable[[StoredSchedule, Admitted], Awaitable[ScheduleStatus]]]] = {
    ScheduleAction.PAUSE: _pause,
    ScheduleAction.RESUME: _resume,
    ScheduleAction.TRIGGER: _trigger,
    ScheduleAction.REMOVE: _remove,
}


async def _fire(ctx: restate.ObjectContext, firing: Firing) -> None:
    """Start what is due, and send the next firing on its way."""
    schedule = await StoredSchedule.read(ctx)
    if not schedule.exists or (firing.generation, firing.planned) != (schedule.past.generation, schedule.head.next_at):
        return
    spec, head = schedule.spec, schedule.head
    try:
        decision = await _decided(ctx, lambda now: decide(spec, firing.planned, now, head.anchor))
    except TerminalError as error:
        if is_own_cancel(error):  # a schedule is not to be lost by a cancel: who wants it to stop pauses it
            await ObjectClient(ctx, fire_target, ctx.key()).send(firing)
            return
        lost = f"the firing planned for {stamp(firing.planned)} was lost; resume to begin anew: {error.message}"
        await schedule.write(spec, head.model_copy(update={"last_error": lost}))
        raise
    overlapped = 0
    for planned in decision.due:
        if _is_busy(spec, head):
            overlapped += 1
            continue
        late = decision.now - planned > spec.tolerance
        head = await _start(schedule, head, planned, RunCause.CATCH_UP if late else RunCause.DUE, decision.now)
    counts = _counted(head.counts, missed=decision.missed, overlapped=overlapped)
    head = head.model_copy(update={"counts": counts, "next_at": decision.next_at, "updated_at": decision.now})
    await schedule.write(spec, head)
    schedule.send_firing(decision.now)
    log.info(
        "schedule.fired",
        schedule=schedule.name,
        planned=stamp(firing.planned),
        started=len(decision.due) - overlapped,
        missed=decision.missed,
        overlapped=overlapped,
    )


def _is_busy(spec: ScheduleSpec, head: Head) -> bool:
    return len(head.active) >= (1 if spec.overlap is Overlap.SKIP else MOST_AT_ONCE)


async def _start(schedule: StoredSchedule, head: Head, planned: datetime, cause: RunCause, now: datetime) -> Head:
    """Send a run to the dispatcher, and return the schedule's head with it."""
    spec = schedule.spec
    suffix = f"/{cause}" if cause is RunCause.TRIGGER else ""
    run = ScheduledRun(
        id=f"{schedule.name}/{schedule.past.generation}/{stamp(planned)}{suffix}",
        planned=planned,
        cause=cause,
        begun_at=now,
    )
    key = spec.target.key_of(schedule.name, planned, spec.timezone)
    order = RunOrder(
        schedule=schedule.name,
        run_id=run.id,
        target=spec.target.model_copy(update={"key": key}),
        payload=spec.payload,
        planned=planned,
    )
    await ServiceClient(schedule.ctx, run_target).send(order)
    return head.model_copy(update={"active": [*head.active, run], "counts": _counted(head.counts, started=1)})


async def _report(ctx: restate.ObjectContext, report: RunReport) -> None:
    """Take what the dispatcher tells about a run."""
    schedule = await StoredSchedule.read(ctx)
    run = next((each for each in schedule.head.active if each.id == report.run_id), None) if schedule.exists else None
    if run is None:  # the schedule was removed, or began anew
        return
    head = schedule.head
    try:
        now = await Time(ctx).now()
    except TerminalError as error:
        if not is_own_cancel(error):
            raise
        await ObjectClient(ctx, report_target, ctx.key()).send(report)
        return
    told = run.model_copy(update=report.model_dump(include={"state", "invocation_id", "error"}, exclude_none=True))
    if report.state is RunState.RUNNING:
        active = [told if each.id == run.id else each for each in head.active]
        await schedule.write(schedule.spec, head.model_copy(update={"active": active, "updated_at": now}))
        return
    failed = report.state in (RunState.FAILED, RunState.NOT_STARTED)
    ended = told.model_copy(update={"ended_at": now})
    changes: dict[str, Any] = {
        "active": [each for each in head.active if each.id != run.id],
        "recent": [ended, *head.recent][:RECENT],
        "counts": _counted(head.counts, failed=int(failed), succeeded=int(report.state is RunState.SUCCEEDED)),
        "updated_at": now,
    }
    if failed:
        changes["last_error"] = report.error
        log.warning("schedule.run_failed", schedule=schedule.name, run=run.id, state=report.state, error=report.error)
    await schedule.write(schedule.spec, head.model_copy(update=changes))


def _counted(counts: ScheduleCounts, **more: int) -> ScheduleCounts:
    return counts.model_copy(update={name: getattr(counts, name) + number for name, number in more.items()})


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidInput(
            f"a schedule's name has 1 to {MAX_NAME_LENGTH} printable characters; got {len(name)}, "
            f"beginning with {name[:20]!r}",
            metadata={"field": "name"},
        )


def _check_target(spec: ScheduleSpec, allowed: Sequence[str]) -> None:
    wanted = f"{spec.target.service}/{spec.target.handler}"
    if spec.target.service in INTERNAL or spec.target.service.endswith(COMPENSATIONS):
        raise Refused(f"{wanted} is one of perdure's own handlers, which can't be scheduled", 403, "target_refused")
    if not any(fnmatchcase(wanted, pattern) for pattern in allowed):
        raise Refused(
            f"{wanted} may not be scheduled here: allowed is {', '.join(allowed) or 'nothing'}; who hosts Schedules "
            "decides that (`definitions(targets=...)`)",
            403,
            "target_refused",
        )


def build_schedules(targets: Sequence[str]) -> restate.VirtualObject:
    """Return the virtual object `Schedules`.

    Args:
        targets: Which handlers may be scheduled, as patterns of ``Service/handler``.
    """
    allowed = tuple(targets)

    async def set_schedule(ctx: restate.ObjectContext, request: ScheduleRequest) -> ScheduleStatus:
        """Create or replace a schedule. A paused one stays paused; one equal to what is there stays as it is."""
        spec = request.spec
        _check_name(ctx.key())
        _check_target(spec, allowed)
        schedule = await StoredSchedule.read(ctx)
        return await _set(schedule, spec, await admit(ctx, ScheduleAction.SET, request, shown_setting(spec)))

    async def order(ctx: restate.ObjectContext, wanted: ScheduleOrder) -> ScheduleStatus:
        """Do what a handler wants: what comes from inside the engine needs no proof."""
        by = Admitted(wanted.actor, wanted.reason)
        if wanted.act is not ScheduleAction.SET:
            return await _STEERS[wanted.act](await StoredSchedule.read(ctx), by)
        if wanted.spec is None:
            raise InvalidInput("spec: to set a schedule, say which", metadata={"field": "spec"})
        _check_name(ctx.key())
        _check_target(wanted.spec, allowed)
        return await _set(await StoredSchedule.read(ctx), wanted.spec, by)

    schedules = restate.VirtualObject("Schedules", description="Starts handlers at planned times, durably.")
    handler(schedules, "exclusive", name="set", ingress_private=False)(set_schedule)
    for act in _STEERS:
        handler(schedules, "exclusive", name=act.value, ingress_private=False)(_steering(act))
    handler(schedules, "shared", name="status", reads=True, ingress_private=False)(_status)
    handler(schedules, "exclusive", name="order", ingress_private=True)(order)
    handler(schedules, "exclusive", name="fire", ingress_private=True)(_fire)
    handler(schedules, "exclusive", name="report", ingress_private=True)(_report)
    return schedules


def _steering(
    act: ScheduleAction,
) -> Callable[[restate.ObjectContext, ScheduleActionRequest], Awaitable[ScheduleStatus]]:
    async def steer(ctx: restate.ObjectContext, request: ScheduleActionRequest) -> ScheduleStatus:
        schedule = await StoredSchedule.read(ctx)
        shown = shown_schedule(schedule.spec, schedule.past.generation)
        return await _STEERS[act](schedule, await admit(ctx, act, request, shown))

    steer.__doc__ = _STEERS[act].__doc__
    return steer

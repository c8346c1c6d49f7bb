"""`perdure schedules`: list, set and control schedules."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from perdure.cli.options import (
    DEFAULT_INGRESS,
    ActorOption,
    IngressOption,
    JsonOption,
    KeyFileOption,
    ReasonOption,
    UsageError,
    call_ingress,
    explained,
    parse_duration,
    print_answer,
    print_facts,
    read_payload,
    resolve_actor,
    suggesting,
)
from perdure.schedules.messages import (
    INDEX_KEY,
    ScheduleAction,
    ScheduleActionRequest,
    ScheduledRun,
    ScheduleListRequest,
    ScheduleRequest,
    ScheduleStatus,
    action_target,
    list_target,
    set_target,
    status_target,
)
from perdure.schedules.recurrence import CatchUp, Overlap
from perdure.schedules.signatures import sign_action, sign_setting
from perdure.terminal import console

app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of the schedule.")]

_MAX_PAGE_SIZE: Final = 200
_STATE_STYLES: Final = {"paused": "yellow", "finished": "dim"}


@app.command("list")
def list_(
    *,
    page: Annotated[int, typer.Option(min=1)] = 1,
    page_size: Annotated[int, typer.Option(min=1, max=_MAX_PAGE_SIZE)] = 50,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """List schedules, sorted by name."""
    request = ScheduleListRequest(page=page, page_size=page_size)
    schedules = call_ingress(ingress, lambda client: client.call(list_target, request, key=INDEX_KEY))
    if as_json:
        console.print_model(schedules)
        return
    if not schedules.items and not schedules.unreadable:
        console.say("No schedules.")
        return
    table = Table("name", "state", "timing", "target", "next", "runs", "failed", "last error")
    for schedule in schedules.items:
        table.add_row(
            schedule.name,
            schedule.state,
            schedule.spec.timing,
            str(schedule.spec.target),
            _next(schedule),
            str(schedule.counts.started),
            str(schedule.counts.failed),
            schedule.last_error or "",
            style=_STATE_STYLES.get(schedule.state),
        )
    console.print(table)
    for unreadable in schedules.unreadable:
        console.say(f"{unreadable.name}: {unreadable.error}", "red")
    console.say(f"{schedules.total} schedules, page {schedules.page} of {schedules.pages}")


@app.command()
def show(name: NameArgument, *, as_json: JsonOption = False, ingress: IngressOption = DEFAULT_INGRESS) -> None:
    """Show the timing, runs and audit log of a schedule."""
    schedule = _status(ingress, name)
    if as_json:
        console.print_model(schedule)
    else:
        _print_schedule(schedule)


@app.command("set")
def set_(
    name: NameArgument,
    *,
    target: Annotated[str, typer.Option(help="SERVICE/HANDLER or SERVICE/KEY/HANDLER.")],
    cron: Annotated[str | None, typer.Option(help="For example '0 2 * * *'.")] = None,
    every: Annotated[str | None, typer.Option(help="Interval, for example 15m or 1h30m.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of --cron.")] = "UTC",
    payload: Annotated[str | None, typer.Option(help="Request, as JSON or @FILE.")] = None,
    catch_up: Annotated[CatchUp, typer.Option(help="Missed firings.")] = CatchUp.SKIP,
    catch_up_limit: Annotated[int, typer.Option(help="For all: maximum of runs.")] = 100,
    tolerance: Annotated[str, typer.Option(help="For skip: maximum delay.")] = "1m",
    overlap: Annotated[Overlap, typer.Option(help="Firing during a run.")] = Overlap.SKIP,
    start: Annotated[datetime | None, typer.Option(help="Earliest firing, in UTC.")] = None,
    end: Annotated[datetime | None, typer.Option(help="Latest firing, in UTC.")] = None,
    description: Annotated[str, typer.Option(help="Purpose of the schedule.")] = "",
    actor: ActorOption = None,
    key_file: KeyFileOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Create or replace a schedule. A paused schedule stays paused."""
    actor, key = resolve_actor(actor, key_file)
    settings: dict[str, Any] = {
        "target": _target(target),
        "cron": cron,
        "every": None if every is None else parse_duration("--every", every),
        "timezone": timezone,
        "payload": read_payload(payload),
        "catch_up": catch_up,
        "catch_up_limit": catch_up_limit,
        "tolerance": parse_duration("--tolerance", tolerance),
        "overlap": overlap,
        "start": None if start is None else f"{start.isoformat()}Z",
        "end": None if end is None else f"{end.isoformat()}Z",
        "description": description,
        "actor": actor,
        "reason": reason,
    }
    with explained():
        request = ScheduleRequest.model_validate(settings)
    if key is not None:
        signed_action = sign_setting(key, name, request.spec, reason=reason, at=datetime.now(UTC))
        request = request.model_copy(update={"signed_action": signed_action})
    schedule = call_ingress(ingress, lambda client: client.call(set_target, request, key=name))
    print_answer(schedule, as_json, f"Schedule '{name}' set. {_summary(schedule)}")


_HELP: Final = {
    ScheduleAction.PAUSE: "Pause a schedule. Active runs continue.",
    ScheduleAction.RESUME: "Resume a schedule, or restore the lost firing of an active one.",
    ScheduleAction.TRIGGER: "Start a run now.",
    ScheduleAction.REMOVE: "Remove a schedule. Active runs continue.",
}
_CONFIRMATIONS: Final = {
    ScheduleAction.PAUSE: "paused",
    ScheduleAction.RESUME: "resumed",
    ScheduleAction.TRIGGER: "triggered",
    ScheduleAction.REMOVE: "removed",
}


def _add_command(action: ScheduleAction) -> None:
    """Add the command for one action."""

    def command(
        name: NameArgument,
        *,
        actor: ActorOption = None,
        key_file: KeyFileOption = None,
        reason: ReasonOption = "",
        as_json: JsonOption = False,
        ingress: IngressOption = DEFAULT_INGRESS,
    ) -> None:
        actor, key = resolve_actor(actor, key_file)
        signed_action = None
        if key is not None:
            signed_action = sign_action(key, action, _status(ingress, name), reason=reason, at=datetime.now(UTC))
        request = ScheduleActionRequest(actor=actor, reason=reason, signed_action=signed_action)
        with _suggesting(ingress, name):
            schedule = call_ingress(ingress, lambda client: client.call(action_target(action), request, key=name))
        summary = "" if action is ScheduleAction.REMOVE else f" {_summary(schedule)}"
        print_answer(schedule, as_json, f"Schedule '{name}' {_CONFIRMATIONS[action]}.{summary}")

    command.__doc__ = _HELP[action]
    app.command(action.value)(command)


for _action in _HELP:
    _add_command(_action)


def _status(ingress: str, name: str) -> ScheduleStatus:
    with _suggesting(ingress, name):
        return call_ingress(ingress, lambda client: client.call(status_target, key=name))


def _suggesting(ingress: str, name: str) -> AbstractContextManager[None]:
    def names() -> list[str]:
        request = ScheduleListRequest(page_size=_MAX_PAGE_SIZE)
        page = call_ingress(ingress, lambda client: client.call(list_target, request, key=INDEX_KEY))
        return [each.name for each in page.items]

    return suggesting(name, names)


def _summary(schedule: ScheduleStatus) -> str:
    return f"State: {schedule.state}. Next firing: {_time(schedule.next_at) or 'none'}."


def _print_schedule(schedule: ScheduleStatus) -> None:
    spec, counts = schedule.spec, schedule.counts
    facts = {
        "name": schedule.name,
        "description": spec.description,
        "state": schedule.state,
        "timing": spec.timing,
        "next": _next(schedule),
        "target": str(spec.target),
        "payload": "" if spec.payload is None else json.dumps(spec.payload, ensure_ascii=False),
        "policies": f"catch up {spec.catch_up}, overlap {spec.overlap}",
        "runs": f"{counts.started} started, {counts.succeeded} succeeded, {counts.failed} failed, "
        f"{counts.missed} missed, {counts.overlapped} overlapped",
        "last error": schedule.last_error or "",
    }
    print_facts(facts)
    runs = [*schedule.active, *schedule.recent]
    if runs:
        table = Table("planned", "cause", "state", "duration", "invocation", "error")
        for run in runs:
            table.add_row(
                _time(run.planned), run.cause, run.state, _run_duration(run), run.invocation_id or "", run.error or ""
            )
        console.print(table)
    for entry in schedule.audit_log:
        signed = "unsigned" if entry.signed_action is None else "signed"
        console.say(f"{_time(entry.at)}  {entry.actor}  {entry.action}  {entry.reason}  ({signed})")


def _time(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S %Z}"


def _next(schedule: ScheduleStatus) -> str:
    overdue = ", overdue: resume the schedule" if schedule.is_overdue(datetime.now(UTC)) else ""
    return f"{_time(schedule.next_at)}{overdue}"


def _run_duration(run: ScheduledRun) -> str:
    return "" if run.ended_at is None else f"{(run.ended_at - run.started_at).total_seconds():.1f} s"


def _target(text: str) -> dict[str, str | None]:
    parts = text.split("/")
    if len(parts) < 2:
        raise UsageError(f"--target: '{text}' is not a handler; write SERVICE/HANDLER or SERVICE/KEY/HANDLER")
    return {"service": parts[0], "handler": parts[-1], "key": "/".join(parts[1:-1]) or None}

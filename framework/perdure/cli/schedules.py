"""`perdure schedules`: what starts by itself, when, and what came of it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError
from rich.table import Table

from perdure._runtime.serdes import invalid_input
from perdure.cli.options import (
    DEFAULT_INGRESS,
    ActorOption,
    IngressOption,
    JsonOption,
    KeyFileOption,
    ReasonOption,
    actor_option,
    ask,
    print_json,
    read_payload,
)
from perdure.errors import ConfigurationError
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

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The schedule.")]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_STATE_STYLES: Final = {"paused": "yellow", "finished": "dim"}


@app.command("list")
def list_(
    *,
    page: Annotated[int, typer.Option(min=1)] = 1,
    page_size: Annotated[int, typer.Option(min=1, max=200)] = 50,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """List schedules, in the order of their names."""
    request = ScheduleListRequest(page=page, page_size=page_size)
    found = ask(ingress, lambda client: client.call(list_target, request, key=INDEX_KEY))
    if as_json:
        print_json(found)
        return
    if not found.items:
        console.say("no schedules")
        return
    table = Table("name", "state", "when", "starts", "next", "runs", "failed", "last error")
    for each in found.items:
        table.add_row(
            each.name,
            each.state,
            each.spec.timing,
            str(each.spec.target),
            _next(each),
            str(each.counts.started),
            str(each.counts.failed),
            each.last_error or "",
            style=_STATE_STYLES.get(each.state),
        )
    console.print(table)
    console.say(f"{found.total} in all, page {found.page} of {found.pages}")


@app.command()
def show(name: NameArgument, *, as_json: JsonOption = False, ingress: IngressOption = DEFAULT_INGRESS) -> None:
    """Show one schedule: when it fires, its runs, and who did what to it."""
    found = ask(ingress, lambda client: client.call(status_target, key=name))
    if as_json:
        print_json(found)
    else:
        _draw(found)


@app.command("set")
def set_(
    name: NameArgument,
    *,
    target: Annotated[str, typer.Option(help="The handler to start: SERVICE/HANDLER, or SERVICE/KEY/HANDLER.")],
    cron: Annotated[str | None, typer.Option(help="When: a cron expression, such as '0 2 * * *'.")] = None,
    every: Annotated[str | None, typer.Option(help="Or how often: 15m, 1h30m, 2d.")] = None,
    timezone: Annotated[str, typer.Option(help="The time zone of --cron, such as Europe/Vienna.")] = "UTC",
    payload: Annotated[str | None, typer.Option(help="What the handler is given, as JSON or @FILE.")] = None,
    catch_up: Annotated[CatchUp, typer.Option(help="What becomes of firings that were missed.")] = CatchUp.SKIP,
    catch_up_limit: Annotated[int, typer.Option(help="With --catch-up all: how many at most.")] = 100,
    tolerance: Annotated[str, typer.Option(help="With --catch-up skip: how late one may be and still run.")] = "1m",
    overlap: Annotated[Overlap, typer.Option(help="What becomes of one while the run before goes on.")] = Overlap.SKIP,
    start: Annotated[datetime | None, typer.Option(help="None before this moment, in UTC.")] = None,
    end: Annotated[datetime | None, typer.Option(help="None after this moment, in UTC.")] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    actor: ActorOption = None,
    key_file: KeyFileOption = None,
    reason: ReasonOption = "",
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Create a schedule, or replace the one of this name. A paused one stays paused."""
    who, key = actor_option(actor, key_file)
    wanted: dict[str, Any] = {
        "target": _target(target),
        "cron": cron,
        "every": None if every is None else _duration("--every", every),
        "timezone": timezone,
        "payload": read_payload(payload),
        "catch_up": catch_up,
        "catch_up_limit": catch_up_limit,
        "tolerance": _duration("--tolerance", tolerance),
        "overlap": overlap,
        "start": None if start is None else f"{start.isoformat()}Z",
        "end": None if end is None else f"{end.isoformat()}Z",
        "description": description,
        "actor": who,
        "reason": reason,
    }
    try:
        request = ScheduleRequest.model_validate(wanted)
    except ValidationError as error:
        raise ConfigurationError(invalid_input(error).message) from error
    if key is not None:
        proof = sign_setting(key, name, request.spec, reason=reason, at=datetime.now(UTC))
        request = request.model_copy(update={"proof": proof})
    found = ask(ingress, lambda client: client.call(set_target, request, key=name))
    console.say(f"{name}: set by {who}, {found.state}, next {_time(found.next_at) or 'never'}")


def _act(act: ScheduleAction) -> None:
    """Add the command for one act."""
    texts = {
        ScheduleAction.PAUSE: "Let it fire no more until it is resumed. Runs that are going on go on.",
        ScheduleAction.RESUME: "Let it fire again. One that is not paused begins anew, which mends a lost firing.",
        ScheduleAction.TRIGGER: "Start a run now.",
        ScheduleAction.REMOVE: "Remove it. Runs that are going on go on.",
    }

    def command(
        name: NameArgument,
        *,
        actor: ActorOption = None,
        key_file: KeyFileOption = None,
        reason: ReasonOption = "",
        ingress: IngressOption = DEFAULT_INGRESS,
    ) -> None:
        who, key = actor_option(actor, key_file)
        proof = None
        if key is not None:
            shown = ask(ingress, lambda client: client.call(status_target, key=name))
            proof = sign_action(key, act, shown, reason=reason, at=datetime.now(UTC))
        request = ScheduleActionRequest(actor=who, reason=reason, proof=proof)
        found = ask(ingress, lambda client: client.call(action_target(act), request, key=name))
        if act is ScheduleAction.REMOVE:
            console.say(f"{name}: removed by {who}")
            return
        left = f"{found.state}, next {_time(found.next_at) or 'never'}"
        console.say(f"{name}: {act} by {who}, now {left}")

    command.__doc__ = texts[act]
    app.command(act.value)(command)


for _each in (ScheduleAction.PAUSE, ScheduleAction.RESUME, ScheduleAction.TRIGGER, ScheduleAction.REMOVE):
    _act(_each)


def _draw(schedule: ScheduleStatus) -> None:
    spec, counts = schedule.spec, schedule.counts
    facts = Table(show_header=False, box=None)
    for name, value in {
        "name": schedule.name,
        "what": spec.description,
        "state": schedule.state,
        "when": spec.timing,
        "next": _next(schedule),
        "starts": str(spec.target),
        "payload": "" if spec.payload is None else json.dumps(spec.payload, ensure_ascii=False),
        "policies": f"catch up {spec.catch_up}, overlap {spec.overlap}",
        "runs": f"{counts.started} started, {counts.succeeded} succeeded, {counts.failed} failed, "
        f"{counts.missed} missed, {counts.overlapped} left out as overlapping",
        "last error": schedule.last_error or "",
    }.items():
        if value:
            facts.add_row(name, value)
    console.print(facts)
    runs = [*schedule.active, *schedule.recent]
    if runs:
        table = Table("planned", "why", "state", "took", "invocation", "error")
        for run in runs:
            table.add_row(
                _time(run.planned), run.cause, run.state, _took(run), run.invocation_id or "", run.error or ""
            )
        console.print(table)
    for entry in schedule.audit_log:
        proof = "unsigned" if entry.proof is None else "signed"
        console.say(f"{_time(entry.at)}  {entry.actor}  {entry.act}  {entry.reason}  ({proof})")


def _time(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def _next(schedule: ScheduleStatus) -> str:
    overdue = ", overdue: `resume` begins anew" if schedule.is_overdue(datetime.now(UTC)) else ""
    return f"{_time(schedule.next_at)}{overdue}"


def _took(run: ScheduledRun) -> str:
    return "" if run.ended_at is None else f"{(run.ended_at - run.begun_at).total_seconds():.1f} s"


def _target(text: str) -> dict[str, str | None]:
    parts = text.split("/")
    if len(parts) < 2:
        raise ConfigurationError(f"--target: '{text}' is no handler; write SERVICE/HANDLER, or SERVICE/KEY/HANDLER")
    return {"service": parts[0], "handler": parts[-1], "key": "/".join(parts[1:-1]) or None}


def _duration(option: str, text: str) -> timedelta:
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        raise ConfigurationError(f"{option}: '{text}' is no duration; write it like 15m, 1h30m, 2d or 500ms")
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in found))

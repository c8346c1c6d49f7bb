"""`perdure sagas`: list sagas, show their timelines, and act on them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from perdure.alerts.service import pause_reasons
from perdure.approvals.targets import open_approval
from perdure.cli.options import (
    DEFAULT_ADMIN,
    DEFAULT_INGRESS,
    AdminOption,
    IngressOption,
    JsonOption,
    query_engine,
)
from perdure.cli.saga_actions import (
    AttributeOption,
    ErrorOption,
    OlderThanOption,
    ServiceOption,
    SinceOption,
    add_commands,
    filter_of,
    nearest,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.ingress import IngressClient
from perdure.errors import ConfigurationError, EngineError
from perdure.saga.filters import SagaFilter, list_with_facts
from perdure.saga.queries import ALL_PHASES, OPEN_PHASES
from perdure.saga.schema import SAGA_HELD_STEPS, held_mark_key, held_marks_sql, held_step_id, of_key_sql
from perdure.saga.status import SagaPhase
from perdure.saga.timeline import Timeline, TimelineStep, read_timeline
from perdure.security.codec import codec_from_environment
from perdure.terminal import console

app = typer.Typer(no_args_is_help=True)

_PHASE_STYLES = {"orphaned": "bold red", "needs_attention": "bold red", "paused": "yellow", "compensating": "yellow"}
_COMPENSATION_STYLES = {
    "pending": "yellow",
    "undone": "green",
    "resolved": "green",
    "failed": "yellow",
    "dead_letter": "bold red",
}


@app.command("list")
def list_(
    *,
    phase: Annotated[
        SagaPhase | None,
        typer.Option(show_choices=False, help=f"One of {', '.join(ALL_PHASES)}; default: all open ones."),
    ] = None,
    service: ServiceOption = None,
    older_than: OlderThanOption = None,
    since: SinceOption = "1d",
    error: ErrorOption = None,
    attribute: AttributeOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of sagas.")] = 50,
    as_json: JsonOption = False,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """List open sagas, or with --phase, sagas of the last day, oldest first."""
    phases = OPEN_PHASES if phase is None else (phase,)
    wanted = filter_of(phases, service, older_than=older_than, since=since, error=error, attribute=attribute)
    codec = codec_from_environment()
    sagas = query_engine(admin, lambda engine: list_with_facts(engine, wanted, limit=limit, codec=codec))
    if as_json:
        console.print_model(sagas)
        return
    if not sagas.items:
        ended = f" that started within {since}; for older ones: --since" if phase and phase not in OPEN_PHASES else ""
        console.say("No open sagas." if wanted == SagaFilter(since=wanted.since) else f"No matching sagas{ended}.")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("saga", "service", "phase", "age", "step", "attempt", "error"):
        table.add_column(column, overflow="fold")
    now = datetime.now(UTC)
    for saga in sagas.items:
        table.add_row(
            saga.key,
            saga.service,
            saga.phase,
            _age(now - saga.started_at),
            saga.step or "",
            "" if saga.attempts is None else str(saga.attempts),
            saga.error or "",
            style=_PHASE_STYLES.get(saga.phase),
        )
    console.print(table)
    if sagas.total > len(sagas.items):
        console.say(f"{sagas.total - len(sagas.items)} more: --limit {min(sagas.total, 1000)}")
    console.say("To show a timeline: perdure sagas show SAGA")


@app.command()
def show(
    saga_id: Annotated[str, typer.Argument(metavar="ID", help="The saga ID; for a trip, the trip ID.")],
    *,
    service: Annotated[str | None, typer.Option(help="The service, if the saga ID is ambiguous.")] = None,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """Show the timeline of a saga: steps, durations, results and compensations."""

    async def fetch() -> tuple[Timeline, list[str]]:
        codec = codec_from_environment()
        client = IngressClient(ingress, timeout=timedelta(seconds=30), codec=codec)
        async with AdminClient(admin) as engine, client:
            try:
                saga = await read_timeline(engine, client, saga_id, service=service, codec=codec)
            except EngineError as error:
                if error.status_code != 404:
                    raise
                raise ConfigurationError(f"{error}{await nearest(engine, saga_id)}") from error
            return saga, [] if as_json else await _blockers(engine, saga)

    saga, blockers = asyncio.run(fetch())
    if as_json:
        console.print_model(saga)
        return
    print_timeline(saga)
    for line in (*blockers, *_required_actions(saga)):
        console.say(line)


async def _blockers(engine: AdminClient, saga: Timeline) -> list[str]:
    """Return a line for each invocation, held step or approval that the saga waits for, with the action to take."""
    if saga.ended_at is not None:
        return []
    own = f"target_service_name = {sql_text(saga.service)} and {of_key_sql(saga.key, column='target_service_key')}"
    itself = f"(select id from sys_invocation_status where {own} and target_handler_name = 'run')"  # noqa: S608 - quoted
    rows = await engine.query(
        "select id, target from sys_invocation_status where status = 'paused' "  # noqa: S608 - quoted
        f"and (id in {itself} or invoked_by_id in {itself})"
    )
    paused = await pause_reasons(engine, [row["id"] for row in rows])
    lines = []
    for row in rows:
        cause = f": {paused[row['id']]}. Fix the cause, then" if paused.get(row["id"]) else " by an operator. To"
        lines.append(f"{row['target']} is paused{cause} resume: perdure invocations resume {row['id']}")
    calls = await engine.query(
        "select entry_lite_json as entry from sys_journal where entry_type = 'Command: Call' "  # noqa: S608 - quoted
        f"and id in {itself}"
    )
    saga_id = saga.saga_id
    for row in calls:
        (called,) = json.loads(row["entry"])["Command"]["Call"]["invocation_target"].values()
        if (called["name"], called["handler"]) == (open_approval.service, open_approval.handler):
            lines.append(f"The saga requested an approval: perdure approvals show {called['key']}")
        elif called["name"] == SAGA_HELD_STEPS:
            saga_id = called["key"]  # with the prefix of the service, which the argument may omit
    held = {row["key"] for row in await engine.query(held_marks_sql(saga.service, saga.key))}
    return lines + [
        f"The step {step.step} is held: perdure held-steps show {held_step_id(saga_id, step.position)}"
        for step in saga.steps
        if held_mark_key(step.position) in held
    ]


def _required_actions(saga: Timeline) -> list[str]:
    """Return a line for each dead letter of the saga."""
    return [
        f"The dead letter of {step.step} needs an operator: perdure dead-letters show "
        f"{saga.rollback.letter_id(step.position)}"
        for step in saga.steps
        if step.undo == "dead_letter" and saga.rollback is not None
    ]


def print_timeline(saga: Timeline) -> None:
    """Print a timeline to the terminal."""
    rollback = "" if saga.rollback is None else f", rollback {saga.rollback.status.value}"
    # The engine distinguishes more states, such as invoked and suspended. The list of sagas shows these two.
    state = saga.result or ("paused" if saga.status == "paused" else "running")
    console.say(f"Saga {saga.saga_id} of {saga.service}: {state}{rollback}", style="bold")
    if saga.failure:
        console.say(f"Failure: {saga.failure}")
    begin = saga.started_at
    # The table fits a narrow terminal, so errors are printed below it.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "step", "action", "started", "duration", "result", "compensation"):
        table.add_column(column, overflow="fold")
    for step in saga.steps:
        result = step.result or ("" if saga.ended_at or step.action == "wait" else "running")
        table.add_row(
            str(step.position),
            step.step,
            step.action,
            "" if step.started_at is None else f"+{(step.started_at - begin).total_seconds():.3f} s",
            _duration(step),
            _with_attempts(result, step.attempts or 1),
            _with_attempts(step.undo or "", step.compensation_attempts),
            style=_COMPENSATION_STYLES.get(step.undo or ""),
        )
    console.print(table)
    for step in saga.steps:
        if step.error:
            console.say(f"Compensation of {step.step} failed: {step.error}{_next_attempt(step.next_attempt_at)}")
    for call in saga.retried:
        failed = f"{call.target} fails ({call.attempts} attempts): {call.error}"
        console.say(
            f"{failed}{_next_attempt(call.next_attempt_at)}. Fix the cause. The invocation resumes automatically."
        )
    invocation = f", invocation {saga.invocation}" if saga.invocation else ""
    console.say(f"Started {begin:%Y-%m-%d %H:%M:%S %Z}, {_elapsed(saga)}{invocation}")
    for entry in saga.rollback.audit_log if saga.rollback else []:
        console.say(
            f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.actor}  {entry.action} {entry.step}: {entry.before} -> "
            f"{entry.after}  {entry.reason}",
        )


def _age(age: timedelta) -> str:
    """Return an age in its two largest units."""
    seconds = max(0, int(age.total_seconds()))
    units = [("d", seconds // 86_400), ("h", seconds // 3600 % 24), ("m", seconds // 60 % 60), ("s", seconds % 60)]
    while len(units) > 2 and not units[0][1]:
        units.pop(0)
    return " ".join(f"{number}{unit}" for unit, number in units[:2] if number) or "0s"


def _next_attempt(at: datetime | None) -> str:
    return "" if at is None else f". Next attempt at {at:%Y-%m-%d %H:%M:%S %Z}"


def _with_attempts(result: str, attempts: int) -> str:
    return f"{result} ({attempts} attempts)" if attempts > 1 else result


def _duration(step: TimelineStep) -> str:
    return "" if step.took is None else f"{step.took.total_seconds():.3f} s"


def _elapsed(saga: Timeline) -> str:
    if saga.ended_at is None:
        return f"running for {(datetime.now(UTC) - saga.started_at).total_seconds():.1f} s"
    return f"ended after {(saga.ended_at - saga.started_at).total_seconds():.3f} s"


add_commands(app)

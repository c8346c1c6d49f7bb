"""`perdure sagas`: those that are open, and one of them, drawn in the terminal."""

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
    print_json,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.ingress import IngressClient
from perdure.saga.queries import OPEN_PHASES, SagaList, list_sagas
from perdure.saga.status import SagaPhase
from perdure.saga.timeline import Timeline, TimelineStep, read_timeline
from perdure.security.codec import codec_from_environment
from perdure.terminal import console

app = typer.Typer(help="Sagas: which are open, and each step of one.", no_args_is_help=True)


_PHASE_STYLES = {"orphaned": "bold red", "needs_attention": "bold red", "paused": "yellow", "compensating": "yellow"}
_UNDO_STYLES = {
    "pending": "yellow",
    "undone": "green",
    "resolved": "green",
    "failed": "yellow",
    "dead_letter": "bold red",
}


@app.command("list")
def list_(
    *,
    phase: Annotated[SagaPhase | None, typer.Option(help="Those that stand here, instead of those not over.")] = None,
    service: Annotated[str | None, typer.Option(help="Of this service only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: JsonOption = False,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """List sagas that are not over, the oldest first: what stands still is at the top."""

    async def ask() -> SagaList:
        async with AdminClient(admin) as engine:
            return await list_sagas(
                engine, phases=OPEN_PHASES if phase is None else (phase,), service=service, limit=limit
            )

    found = asyncio.run(ask())
    if as_json:
        print_json(found)
        return
    if not found.items:
        console.say("no such sagas" if phase or service else "no open sagas")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("saga", "service", "stands", "started", "because"):
        table.add_column(column, overflow="fold")
    for each in found.items:
        table.add_row(
            each.key,
            each.service,
            each.phase,
            f"{each.started_at:%Y-%m-%d %H:%M:%S}",
            each.failure or "",
            style=_PHASE_STYLES.get(each.phase),
        )
    console.print(table)
    if found.total > len(found.items):
        console.say(f"{found.total - len(found.items)} more: --limit {min(found.total, 1000)}")
    console.say("perdure sagas show SAGA says what each waits for")


@app.command()
def show(
    saga_id: Annotated[str, typer.Argument(metavar="ID", help="The saga; for a trip, the trip's id.")],
    *,
    service: Annotated[str | None, typer.Option(help="Its service, when several have a saga of this id.")] = None,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """Draw a saga's timeline: each step, when and how long, how it ended, and what became of its undoing."""

    async def ask() -> tuple[Timeline, list[str]]:
        codec = codec_from_environment()
        client = IngressClient(ingress, timeout=timedelta(seconds=30), codec=codec)
        async with AdminClient(admin) as engine, client:
            found = await read_timeline(engine, client, saga_id, service=service, codec=codec)
            return found, [] if as_json else await _held_up(engine, found)

    found, held_up = asyncio.run(ask())
    if as_json:
        print_json(found)
        return
    draw(found)
    for line in (*held_up, *_to_do(found)):
        console.say(line)


async def _held_up(engine: AdminClient, saga: Timeline) -> list[str]:
    """Say what of a saga does not get on, and why: its orchestration, or what that has called and waits for."""
    if saga.ended_at is not None:
        return []
    own = f"target_service_name = {sql_text(saga.service)} and target_service_key = {sql_text(saga.key)}"
    itself = f"(select id from sys_invocation_status where {own} and target_handler_name = 'run')"  # noqa: S608 - quoted
    rows = await engine.query(
        "select id, target, status, retry_count, last_failure from sys_invocation where status != 'completed' "  # noqa: S608 - quoted
        f"and (id in {itself} or invoked_by_id in {itself}) and (status = 'paused' or last_failure is not null)"
    )
    paused = await pause_reasons(engine, [row["id"] for row in rows if row["status"] == "paused"])
    lines = []
    for row in rows:
        why = " ".join((row.get("last_failure") or "").partition("\nTraceback")[0].split())[:300]
        if row["status"] == "paused":
            stopped = f": {paused[row['id']]}. Correct that, then" if paused.get(row["id"]) else " by hand. To go on:"
            lines.append(f"{row['target']} is paused{stopped} perdure invocations resume {row['id']}")
        else:
            tries = f"{row['target']} fails ({row['retry_count']} tries)"
            lines.append(f"{tries}: {why}. Correct that; it goes on by itself")
    sent = await engine.query(
        "select entry_lite_json as entry from sys_journal where entry_type = 'Command: Call' "  # noqa: S608 - quoted
        f"and id in {itself}"
    )
    for row in sent:
        (called,) = json.loads(row["entry"])["Command"]["Call"]["invocation_target"].values()
        if (called["name"], called["handler"]) == (open_approval.service, open_approval.handler):
            lines.append(f"people were asked: perdure approvals show {called['key']}")
    return lines


def _to_do(saga: Timeline) -> list[str]:
    """Say what waits for a person."""
    return [
        f"{step.step} waits for somebody: perdure dead-letters show {saga.saga_id}/{step.position}"
        for step in saga.steps
        if step.undo == "dead_letter"
    ]


def draw(saga: Timeline) -> None:
    """Draw a timeline on the terminal.

    Args:
        saga: The timeline.
    """
    rolled = "" if saga.rollback is None else f", rollback {saga.rollback.status.value}"
    # The engine has more words for what is not over, as invoked and suspended; the list of sagas has these two.
    under_way = "paused" if saga.status == "paused" else "running"
    stands = saga.result or under_way
    console.say(f"saga {saga.saga_id} of {saga.service}: {stands}{rolled}", style="bold")
    if saga.failure:
        console.say(f"because: {saga.failure}")
    begin = saga.started_at
    # What a narrow terminal has room for: errors come below, and nothing has a column of its own that is rarely there.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "step", "ran", "started", "took", "result", "undone"):
        table.add_column(column, overflow="fold")
    for step in saga.steps:
        result = step.result or ("" if saga.ended_at or step.action == "wait" else "running")
        table.add_row(
            str(step.position),
            step.step,
            step.action,
            "" if step.started_at is None else f"+{(step.started_at - begin).total_seconds():.3f} s",
            _took(step),
            _tried(result, step.attempts or 1),
            _tried(step.undo or "", step.compensation_attempts),
            style=_UNDO_STYLES.get(step.undo or ""),
        )
    console.print(table)
    for step in saga.steps:
        if step.error:
            console.say(f"undoing {step.step} failed: {step.error}")
    console.say(f"started {begin:%Y-%m-%d %H:%M:%S %Z}, {_so_far(saga)}")
    for entry in saga.rollback.audit_log if saga.rollback else []:
        console.say(
            f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.actor}  {entry.act} {entry.step}: {entry.before} -> {entry.after}  "
            f"{entry.reason}",
        )


def _tried(result: str, times: int) -> str:
    return f"{result} ({times} tries)" if times > 1 else result


def _took(step: TimelineStep) -> str:
    return "" if step.took is None else f"{step.took.total_seconds():.3f} s"


def _so_far(saga: Timeline) -> str:
    if saga.ended_at is None:
        return f"under way for {(datetime.now(UTC) - saga.started_at).total_seconds():.1f} s"
    return f"ended after {(saga.ended_at - saga.started_at).total_seconds():.3f} s"

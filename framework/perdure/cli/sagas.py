"""`perdure sagas`: one saga, drawn in the terminal."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from perdure.admin import AdminClient
from perdure.cli.asking import DEFAULT_INGRESS, IngressOption, JsonOption, console, print_json
from perdure.ingress import IngressClient
from perdure.saga.timeline import Timeline, TimelineStep, read_timeline
from perdure.security.codec import codec_from_environment

app = typer.Typer(help="Sagas, step by step.", no_args_is_help=True)

AdminOption = Annotated[str, typer.Option("--admin", envvar="PERDURE_ADMIN_URL", help="The engine's admin API.")]

_UNDO_STYLES = {
    "pending": "yellow",
    "undone": "green",
    "resolved": "green",
    "failed": "yellow",
    "dead_letter": "bold red",
}


@app.callback()
def _sagas() -> None:
    """Keep ``show`` a command of its own, though it is the only one yet."""


@app.command()
def show(
    saga_id: Annotated[str, typer.Argument(metavar="ID", help="The saga; for a trip, the trip's id.")],
    *,
    service: Annotated[str | None, typer.Option(help="Its service, when several have a saga of this id.")] = None,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
    admin: AdminOption = "http://127.0.0.1:9070",
) -> None:
    """Draw a saga's timeline: each step, when and how long, how it ended, and what became of its undoing."""

    async def ask() -> Timeline:
        codec = codec_from_environment()
        client = IngressClient(ingress, timeout=timedelta(seconds=30), codec=codec)
        async with AdminClient(admin) as engine, client:
            return await read_timeline(engine, client, saga_id, service=service, codec=codec)

    found = asyncio.run(ask())
    if as_json:
        print_json(found)
    else:
        draw(found)


def draw(saga: Timeline) -> None:
    """Draw a timeline on the terminal.

    Args:
        saga: The timeline.
    """
    rolled = "" if saga.rollback is None else f", rollback {saga.rollback.status.value}"
    console.print(
        f"saga {saga.saga_id} of {saga.service}: {saga.result or saga.status}{rolled}", style="bold", highlight=False
    )
    if saga.failure:
        console.print(f"because: {saga.failure}", highlight=False)
    table = Table("", "step", "plane", "ran", "started", "took", "tries", "result", "undone", "tries", "error")
    begin = saga.started_at
    for step in saga.steps:
        table.add_row(
            str(step.position),
            step.step,
            step.plane,
            step.action,
            "" if step.started_at is None else f"+{(step.started_at - begin).total_seconds():.3f} s",
            _took(step),
            "" if step.attempts is None else str(step.attempts),
            step.result or ("" if saga.ended_at or step.action == "wait" else "running"),
            step.undo or "",
            str(step.undo_attempts) if step.undo_attempts else "",
            step.error or "",
            style=_UNDO_STYLES.get(step.undo or ""),
        )
    console.print(table)
    console.print(f"started {begin:%Y-%m-%d %H:%M:%S %Z}, {_so_far(saga)}", highlight=False)
    for entry in saga.rollback.trail if saga.rollback else []:
        console.print(
            f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.actor}  {entry.act} {entry.step}: {entry.before} -> {entry.after}  "
            f"{entry.reason}",
            highlight=False,
        )


def _took(step: TimelineStep) -> str:
    return "" if step.took is None else f"{step.took.total_seconds():.3f} s"


def _so_far(saga: Timeline) -> str:
    if saga.ended_at is None:
        return f"under way for {(datetime.now(UTC) - saga.started_at).total_seconds():.1f} s"
    return f"ended after {(saga.ended_at - saga.started_at).total_seconds():.3f} s"

"""`perdure sagas`: one saga, drawn in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from perdure.cli.asking import DEFAULT_INGRESS, IngressOption, JsonOption, ask, console, print_json
from perdure.saga.messages import RollbackStatus, rollback_status

app = typer.Typer(help="Sagas, step by step.", no_args_is_help=True)

_MARKS = {
    "pending": ("…", "yellow"),
    "undone": ("↩", "green"),
    "resolved": ("↩", "green"),
    "skipped": ("-", "dim"),
    "discarded": ("-", "dim"),
    "failed": ("✗", "yellow"),
    "dead_letter": ("✗", "bold red"),
}


@app.command()
def show(
    saga_id: Annotated[str, typer.Argument(metavar="ID", help="The saga; for a trip, the trip's id.")],
    *,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Draw a saga's rollback: each step, what undoes it, how far that is, and what operators did."""
    found = ask(ingress, lambda client: client.call(rollback_status, key=saga_id))
    if as_json:
        print_json(found)
        return
    _draw(found)


def _draw(saga: RollbackStatus) -> None:
    console.print(f"saga {saga.saga_id} of {saga.service}: {saga.status.value}", style="bold", highlight=False)
    console.print(f"because: {saga.reason}", highlight=False)
    console.print(
        f"rollback {saga.started_at:%Y-%m-%d %H:%M:%S} to {saga.updated_at:%H:%M:%S}, strategy {saga.strategy}",
        highlight=False,
    )
    table = Table("", "step", "state", "tries", "undone by", "error")
    for step in saga.steps:
        mark, style = _MARKS[step.state.value]
        tries = str(step.attempts) + (f" (redriven {step.redriven}x)" if step.redriven else "")
        table.add_row(
            mark, step.step, step.state.value, tries, step.compensation or "nothing", step.error or "", style=style
        )
    console.print(table)
    for entry in saga.trail:
        console.print(
            f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.actor}  {entry.act} {entry.step}: {entry.before} -> {entry.after}  "
            f"{entry.reason}",
            highlight=False,
        )

"""`perdure deployments`: lists, drains and forgets deployments."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer
from pydantic import BaseModel
from rich import box
from rich.table import Table

from perdure.cli.options import DEFAULT_ADMIN, AdminOption, JsonOption, query_engine
from perdure.engine.deployments import Deployment, deployments
from perdure.engine.deployments import drain as drain_versions
from perdure.engine.deployments import forget as forget_deployment
from perdure.terminal import console, error_console

app = typer.Typer(no_args_is_help=True)


class DeploymentList(BaseModel):
    """Deployments, oldest first."""

    deployments: list[Deployment]


class Drained(BaseModel):
    """Addresses of removed deployments, whose processes can be stopped."""

    removed: list[str]


@app.command("list")
def list_(*, as_json: JsonOption = False, admin: AdminOption = DEFAULT_ADMIN) -> None:
    """List deployments, oldest first. An old version receives no new invocations."""
    found = query_engine(admin, deployments)
    if as_json:
        console.print_model(DeploymentList(deployments=found))
        return
    if not found:
        console.say("No deployments. Register a process: perdure register URL")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("address", "registered", "services", "open"):
        table.add_column(column, overflow="fold", justify="right" if column == "open" else "left")
    for each in found:
        table.add_row(
            each.url,
            f"{each.created_at:%Y-%m-%d %H:%M:%S}" if each.created_at else "",
            ", ".join(each.services) + ("" if each.current else " (old version)"),
            str(each.open_invocations),
            style=None if each.current else "yellow",
        )
    console.print(table)


@app.command()
def drain(
    services: Annotated[
        list[str] | None, typer.Argument(metavar="SERVICE", help="Services whose old versions to drain; all.")
    ] = None,
    *,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for open invocations.")] = 3600,
    as_json: JsonOption = False,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """Wait until old versions have no open invocations, then remove their deployments."""
    removed = query_engine(
        admin,
        lambda engine: drain_versions(
            engine, services or [], timeout=timedelta(seconds=wait), report=error_console.print_lines
        ),
    )
    if as_json:
        console.print_model(Drained(removed=removed))
    else:
        console.say(f"Stop the processes at {', '.join(removed)}." if removed else "There is no old version.")


@app.command()
def forget(
    deployment: Annotated[str, typer.Argument(metavar="URL", help="Address or ID of the deployment.")],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also one in use: its open invocations never continue.")
    ] = False,
    as_json: JsonOption = False,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """Remove a deployment from the engine. One that is in use is refused."""
    gone = query_engine(admin, lambda engine: forget_deployment(engine, deployment, force=force))
    if as_json:
        console.print_model(gone)
    else:
        console.say(f"Removed the deployment at {gone.url} ({', '.join(gone.services)}).")

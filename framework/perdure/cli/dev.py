"""`perdure dev`: runs an engine and the services of modules, and reloads them on changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perdure.dev.project import Project, run_project
from perdure.dev.terminal import Terminal


def dev(
    modules: Annotated[
        list[str],
        typer.Argument(metavar="MODULE", help="Modules with services at their top level, such as shop.orders."),
    ],
    *,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the engine's data of earlier runs first.")] = False,
    port_offset: Annotated[
        int, typer.Option(envvar="PERDURE_PORT_OFFSET", min=0, max=50_000, help="Added to all ports: 100, 200 ...")
    ] = 0,
) -> None:
    """Run an engine and the services of modules. Changes of their code reload them.

    Each module gets a process, and one more hosts rollbacks, approvals, schedules and alerts. Data and logs are in
    .perdure. The ingress is on port 8080, admin API and UI are on 9070, and the processes from 9080 up.
    """
    project = Project.open(modules, root=Path.cwd(), port_offset=port_offset, fresh=fresh)
    raise typer.Exit(run_project(project, Terminal(), fresh=fresh))

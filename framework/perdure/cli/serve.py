"""`perdure serve`: serves the services of modules in one process."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from perdure.errors import ConfigurationError
from perdure.observability.logging import configure_logging
from perdure.schedules import ScheduleSetter
from perdure.security.config import SecurityConfig
from perdure.serving.modules import lifespan_of, load_modules
from perdure.serving.process import serve as serve_services


def serve(
    modules: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODULE", help="Modules with services at their top level, such as shop.orders."),
    ] = None,
    *,
    port: Annotated[int, typer.Option(envvar="PERDURE_PORT", min=1, max=65535, help="The port.")] = 9080,
    host: Annotated[
        str, typer.Option(envvar="PERDURE_HOST", help="The address to listen on; 0.0.0.0 in a container.")
    ] = "127.0.0.1",
    host_platform: Annotated[
        bool,
        typer.Option("--host-platform", help="Also serve rollbacks, approvals, schedules, alerts and the reconcilers."),
    ] = False,
    migrate: Annotated[bool, typer.Option("--migrate", help="First call migrate() of each module.")] = False,
) -> None:
    """Serve the services of modules in one process.

    Register the process with perdure register. For development, use perdure dev.
    """
    if not modules and not host_platform:
        raise ConfigurationError("nothing to serve: pass modules such as shop.orders, or --host-platform")
    configure_logging()  # first, because modules may log while they are imported
    loaded = load_modules(modules or [])
    if migrate:
        for module in loaded:
            module.run_migration()
    raise typer.Exit(
        serve_services(
            *(service for module in loaded for service in module.services),
            ScheduleSetter(sys.modules[module.name] for module in loaded),
            host=host,
            port=port,
            host_platform=host_platform,
            readiness={
                f"{module.name}: {name}" if len(loaded) > 1 else name: check
                for module in loaded
                for name, check in module.readiness.items()
            },
            lifespan=lifespan_of(loaded),
            security=SecurityConfig.from_environment() if os.environ.get("PERDURE_SECURITY_PROFILE") else None,
        )
    )

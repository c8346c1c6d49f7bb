"""`perdure-platform`: run the trips platform, operate it, and audit its databases.

Commands import their own dependencies, because importing all of them takes seconds.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from perdure.errors import ConfigurationError, PerdureError
from perdure.terminal import console, error_console, run_command_line
from services.console.commands import app as console_app
from services.runtime.secret_files import make_secrets, read_environment_files
from services.runtime.settings import PlatformSettings

# This command prints the library's warnings itself. A service configures its own logging.
logging.getLogger("perdure").addHandler(logging.NullHandler())

app = typer.Typer(
    help="Run and operate the trips platform, and audit its databases.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings are environment variables: PERDURE_LOCAL_DIR (default .local), PERDURE_<NAME>_DATABASE_URL for "
    "flights, hotels, payments and notifications, and PERDURE_<NAME>_PORT for ingress, admin, node, console, "
    "orchestrator, saga, approvals, flights, hotels, payments and notifications. PERDURE_SILENCE_LIMIT (default PT30S) "
    "is how long a process may not answer before it is restarted. RESTATE_SERVER_BIN names the engine's binary.",
)

app.add_typer(console_app, name="console")


@app.callback()
def _read_settings() -> None:
    try:
        read_environment_files(os.environ)
    except PerdureError as error:
        error_console.print_lines(f"perdure-platform: {error}")
        raise typer.Exit(1) from error


@app.command()
def run() -> None:
    """Run the engine and all services on this machine until Ctrl-C, and book a first trip.

    Data is in .local/data, logs in .local/logs, process ids in .local/run.
    """
    from perdure.dev.terminal import Terminal
    from services.runtime.run import run as run_platform

    _exit_with(lambda: run_platform(PlatformSettings.read(), Terminal()))


@app.command()
def audit(
    *,
    settled: Annotated[
        bool, typer.Option("--settled", help="Treat everything that an open trip holds as a violation.")
    ] = False,
) -> None:
    """Check the business invariants over all databases; exit 1 if one is violated.

    If the platform is up, trips over the limit are compared with the approvals' audit logs as well.
    """
    from perdure.dev.terminal import Terminal
    from perdure.security.codec import codec_from_environment
    from services.runtime.approval_audit import audit_platform
    from services.runtime.reports import show_audit
    from services.runtime.topology import Topology

    def run_audit() -> int:
        topology, codec = Topology.from_settings(PlatformSettings.read()), codec_from_environment()
        report = asyncio.run(audit_platform(topology, os.environ, codec, settled=settled))
        show_audit(report, Terminal())
        return 0 if report.ok else 1

    _exit_with(run_audit)


@app.command()
def serve(
    name: Annotated[
        str, typer.Argument(help="orchestrator, saga, approvals, flights, hotels, payments, notifications")
    ],
) -> None:
    """Serve one service until SIGTERM on port PERDURE_<NAME>_PORT."""
    from services.runtime.serve import serve as serve_service

    _exit_with(lambda: serve_service(name))


@app.command(name="engine-proxy")
def engine_proxy() -> None:
    """Run the proxy that rejects requests of web pages to the engine. Settings: PERDURE_PROXY_*."""
    from perdure.engine.proxy import ProxySettings, serve_proxy

    _exit_with(lambda: serve_proxy(ProxySettings.read()))


@app.command()
def migrate(
    service: Annotated[
        str | None, typer.Argument(help="Only this service's database: flights, hotels, payments, notifications.")
    ] = None,
    *,
    demo: Annotated[
        bool, typer.Option("--demo", help="Also insert demo data: flights, hotels, accounts, and faults to try.")
    ] = False,
) -> None:
    """Migrate the databases of all services to the newest schemas."""
    from services.runtime.platform import migrate_databases

    def run_migration() -> int:
        urls = PlatformSettings.read().databases
        if service is not None and service not in urls:
            raise ConfigurationError(f"there is no database of '{service}': choose one of {', '.join(urls)}")
        chosen = urls if service is None else {service: urls[service]}
        asyncio.run(migrate_databases(chosen, demo=demo, report=error_console.print_lines))
        console.say(f"the databases of {', '.join(chosen)} are up to date")
        return 0

    _exit_with(run_migration)


@app.command(name="secrets")
def make_secret_files(folder: Annotated[Path, typer.Argument(help="Folder of the secrets.")]) -> None:
    """Create the missing secrets of a platform in containers. Existing secrets stay unchanged."""

    def create() -> int:
        for path in make_secrets(folder):
            console.say(f"created {path}")
        return 0

    _exit_with(create)


@app.command()
def register(
    admin_url: Annotated[
        str | None, typer.Option(envvar="PERDURE_ADMIN_URL", help="The engine's admin API; on this machine by default.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL",
            help="A service and its address for the engine; repeatable. Default: all services on this machine.",
        ),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the engine and the services.")] = 30,
    *,
    beside: Annotated[
        bool,
        typer.Option(
            "--beside", help="Keep deployments at other addresses: they are older versions with open invocations."
        ),
    ] = False,
) -> None:
    """Register services with the engine. Run it after a change of handlers or addresses."""
    from services.runtime.registration import register_all

    def run_registration() -> int:
        done = asyncio.run(
            register_all(
                PlatformSettings.read(),
                admin_url,
                at or [],
                timeout=timedelta(seconds=wait),
                report=error_console.print_lines,
                beside=beside,
            )
        )
        for each in done:
            console.say(f"registered {each.name} at {each.url}: {', '.join(each.serves)}")
        return 0

    _exit_with(run_registration)


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="The service whose old versions to drain.")],
    admin_url: Annotated[
        str | None, typer.Option(envvar="PERDURE_ADMIN_URL", help="The engine's admin API; on this machine by default.")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for open invocations.")] = 3600,
) -> None:
    """Wait until a service's old versions have no open invocations, then remove their deployments."""
    from perdure.engine.deployments import drain as drain_service
    from services.runtime.connections import admin_client
    from services.runtime.topology import Topology
    from services.runtime.topology import service as find_service

    async def run_drain() -> int:
        async with admin_client(admin_url or Topology.from_settings(PlatformSettings.read()).admin_url) as admin:
            gone = await drain_service(
                admin, find_service(name).serves, name=name, timeout=timedelta(seconds=wait), report=console.say
            )
        console.say(f"stop the processes at {', '.join(gone)}" if gone else f"{name} has no old version")
        return 0

    _exit_with(lambda: asyncio.run(run_drain()))


def _exit_with(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; print an error as one line on standard error."""
    try:
        code = command()
    except PerdureError as error:
        error_console.print_lines(f"perdure-platform: {error}")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    run_command_line("perdure-platform", app)

"""`perdure-platform`: run the platform, see it work, and check what it left in its database."""

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

from perdure.dev.terminal import Terminal
from perdure.engine.proxy import ProxySettings, serve_proxy
from perdure.errors import PerdureError
from perdure.security.codec import codec_from_environment
from perdure.terminal import console, error_console, run_command_line
from services.console.commands import app as console_app
from services.runtime.approval_audit import audit_platform
from services.runtime.connections import admin_client
from services.runtime.platform import migrate_database
from services.runtime.registration import register_all
from services.runtime.reports import show_audit
from services.runtime.run import run as run_platform
from services.runtime.secret_files import make_secrets, read_environment_files
from services.runtime.serve import serve as serve_service
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from services.runtime.topology import service as find_service
from services.runtime.upgrade import drain as drain_service

# The launcher itself says what the library warns of while it finds and runs the engine; a service sets up its logs.
logging.getLogger("perdure").addHandler(logging.NullHandler())

app = typer.Typer(
    help="Run the trips platform, see it work, and check what it left in its database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings are environment variables: PERDURE_LOCAL_DIR (default .local), PERDURE_DATABASE_URL, and a port "
    "each for ingress, admin, node, console, orchestrator, saga, approvals, flights, hotels, payments and "
    "notifications, as in PERDURE_INGRESS_PORT. RESTATE_SERVER_BIN names the engine to use.",
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
    """Run the engine and all services on this machine, book a trip, and stay up until Ctrl-C.

    Data is kept in .local/data, logs in .local/logs, process ids in .local/run.
    """
    _exit_with(lambda: run_platform(PlatformSettings.read(), Terminal()))


@app.command()
def audit(
    *,
    settled: Annotated[
        bool, typer.Option("--settled", help="Claim that no trip is on its way: what an open trip holds is a breach.")
    ] = False,
) -> None:
    """Check the invariants over the database, with the platform up or down; exit 1 if one is broken.

    With the platform up, trips over the limit are compared with the approvals' audit logs, too.
    """

    def checked() -> int:
        settings = PlatformSettings.read()
        topology, codec = Topology.from_settings(settings), codec_from_environment()
        report = asyncio.run(
            audit_platform(topology, os.environ, codec, settled=settled, database_url=settings.database)
        )
        show_audit(report, Terminal())
        return 0 if report.ok else 1

    _exit_with(checked)


@app.command()
def serve(
    name: Annotated[
        str, typer.Argument(help="orchestrator, saga, approvals, flights, hotels, payments, notifications")
    ],
) -> None:
    """Serve one service in this process until SIGTERM; its port is PERDURE_<NAME>_PORT."""
    _exit_with(lambda: serve_service(name))


@app.command(name="engine-proxy")
def engine_proxy() -> None:
    """Serve the engine's ports to programs, and refuse web pages; settings are PERDURE_PROXY_…."""
    _exit_with(lambda: serve_proxy(ProxySettings.read()))


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema, fill in the seed data that is missing, and end."""

    def migrated() -> int:
        asyncio.run(migrate_database(PlatformSettings.read().database))
        console.say("the database is up to date")
        return 0

    _exit_with(migrated)


@app.command(name="secrets")
def make_secret_files(folder: Annotated[Path, typer.Argument(help="Where they are kept, or go.")]) -> None:
    """Make the secrets of a platform in containers that are missing, and end. What is there is left as it is."""

    def made() -> int:
        for path in make_secrets(folder):
            console.say(f"made {path}")
        return 0

    _exit_with(made)


@app.command()
def register(
    admin_url: Annotated[
        str | None, typer.Option(envvar="PERDURE_ADMIN_URL", help="The engine's admin API; on this machine by default.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL",
            help="A service and where the engine reaches it; may be repeated. All of them on this machine by default.",
        ),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the engine and the services answer.")] = 30,
    *,
    beside: Annotated[
        bool, typer.Option("--beside", help="A new version: what began on the old one, elsewhere, ends there.")
    ] = False,
) -> None:
    """Tell the engine where services are, and end. Run it after each change of a service's handlers or address."""

    def registered() -> int:
        done = asyncio.run(
            register_all(PlatformSettings.read(), admin_url, at or [], within=timedelta(seconds=wait), beside=beside)
        )
        for each in done:
            console.say(f"registered {each.service.name} at {each.url}: {', '.join(each.service.serves)}")
        return 0

    _exit_with(registered)


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="The service whose old versions are to go.")],
    admin_url: Annotated[
        str | None, typer.Option(envvar="PERDURE_ADMIN_URL", help="The engine's admin API; on this machine by default.")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for what began on them.")] = 3600,
) -> None:
    """Wait until nothing needs a service's old versions, then have the engine forget them; see `register --beside`."""

    async def drained() -> int:
        async with admin_client(admin_url or Topology.from_settings(PlatformSettings.read()).admin_url) as admin:
            gone = await drain_service(admin, find_service(name), within=timedelta(seconds=wait), tell=console.say)
        console.say(f"stop what serves {', '.join(gone)}" if gone else f"{name} has one version only")
        return 0

    _exit_with(lambda: asyncio.run(drained()))


def _exit_with(command: Callable[[], int]) -> NoReturn:
    """Run a command and end with its exit code; what went wrong is one sentence on standard error."""
    try:
        code = command()
    except PerdureError as error:
        error_console.print_lines(f"perdure-platform: {error}")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    run_command_line("perdure-platform", app)

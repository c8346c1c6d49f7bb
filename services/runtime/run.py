"""`perdure-platform run`: the platform in the foreground, with a first trip."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from typing import Final

from perdure.cli.options import DEFAULT_ADMIN, DEFAULT_INGRESS
from perdure.dev.foreground import run_in_foreground
from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from perdure.errors import IngressError, PerdureError
from services.runtime.booking import ORDINARY, book, curl, new_trip_id
from services.runtime.connections import ingress_client
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import CONSOLE, SERVICES, Topology
from services.runtime.trusted_keys import describe_trusted_keys

_FIRST_TRIP_LIMIT: Final = timedelta(minutes=1)


def run(settings: PlatformSettings, terminal: Terminal) -> int:
    """Run the platform until SIGINT, SIGTERM or SIGHUP, then drain and stop it.

    Args:
        settings: Ports and folders.
        terminal: Receives the output.

    Returns:
        The exit code: 0 after a stop, 128 plus the signal number if the platform was not up yet.

    Raises:
        PerdureError: The platform cannot run. No process is left running.
    """
    topology = Topology.from_settings(settings)
    describe_trusted_keys(os.environ)  # reports invalid settings before anything starts

    async def make_platform(engine: LocatedEngine) -> Platform:
        what = f"the engine, {len(SERVICES)} services and the console"
        terminal.say(f"starting {what}; logs are in {topology.log_dir}")
        return Platform(topology, engine, report=terminal.say, console=True, silence_limit=settings.silence_limit)

    return run_in_foreground(
        topology.home,
        terminal,
        program="perdure-platform run",
        setting="PERDURE_LOCAL_DIR",
        engine_dir=topology.engine_dir,
        prepare=topology.check_ports,
        make_platform=make_platform,
        run=lambda platform: _stay_up(platform, terminal),
    )


async def _stay_up(platform: Platform, terminal: Terminal) -> None:
    """Supervise the platform, and book a first trip meanwhile, which may wait behind the stored work."""
    _print_addresses(platform.topology, platform, terminal)
    async with asyncio.TaskGroup() as group:
        group.create_task(platform.supervise())
        group.create_task(_book_first_trip(platform, terminal))


async def _book_first_trip(platform: Platform, terminal: Terminal) -> None:
    trip_id = new_trip_id()
    terminal.say(f"booking trip {trip_id}")
    async with ingress_client(platform.topology.ingress_url, platform.codec) as ingress:
        try:
            async with asyncio.timeout(_FIRST_TRIP_LIMIT.total_seconds()):
                with terminal.progress() as show:
                    confirmation = await book(ingress, trip_id, ORDINARY, show)
        except TimeoutError:
            terminal.say(
                f"trip {trip_id} has not ended within {_FIRST_TRIP_LIMIT.total_seconds():g} s: "
                f"follow it with perdure sagas show {trip_id}, and look for the cause with perdure doctor"
            )
        except PerdureError as error:
            # The stored data or the settings do not allow this trip, or a process is starting again.
            is_refused = isinstance(error, IngressError) and error.source == "invocation"
            outcome = "the trip was refused" if is_refused else f"trip {trip_id} could not be booked"
            terminal.say(f"{outcome}: {error}", "bold red")
        else:
            terminal.print_model(confirmation)


def export_line(topology: Topology) -> str | None:
    """Return a shell line that points the command `perdure` at the engine; None for the default ports."""
    if (topology.ingress_url, topology.admin_url) == (DEFAULT_INGRESS, DEFAULT_ADMIN):
        return None
    urls = f"PERDURE_INGRESS_URL={topology.ingress_url} PERDURE_ADMIN_URL={topology.admin_url}"
    return f"export {urls}   # for the command perdure"


def _print_addresses(topology: Topology, platform: Platform, terminal: Terminal) -> None:
    terminal.say()
    terminal.say(f"console        {topology.console_url}  (process {platform.pid(CONSOLE)})")
    terminal.say(f"gateway        {topology.console_url}/gateway  (requires an API key or a session)")
    terminal.say(f"ingress        {topology.ingress_url}")
    terminal.say(f"engine's UI    {topology.admin_url}/ui")
    for spec in SERVICES:
        terminal.say(f"{spec.name:<14} {topology.service_url(spec.name)}  (process {platform.pid(spec.name)})")
    terminal.say(f"data           {topology.home / 'data'}")
    for line in describe_trusted_keys(os.environ):
        terminal.say(line)
    terminal.say()
    # The administrator role alone permits no decisions.
    roles = "--role approver --role operator"
    terminal.say(
        f"create the console's first administrator: {sys.argv[0]} console admin --name you@example.com {roles}"
    )
    terminal.say()
    if export := export_line(topology):
        terminal.say(export)
        terminal.say()
    if platform.codec is None:
        terminal.say("book another trip:")
        terminal.say()
        terminal.say(curl(topology.ingress_url, new_trip_id(), ORDINARY))
    else:
        terminal.say("the ingress accepts encrypted requests only; book through the gateway, see SECURITY.md")
    terminal.say()
    terminal.say("the platform is up; Ctrl-C stops it")

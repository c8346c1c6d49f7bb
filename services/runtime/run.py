"""`perdure-platform run`: the platform in the foreground, with a first trip booked, until somebody stops it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from perdure.cli.options import DEFAULT_ADMIN, DEFAULT_INGRESS
from perdure.dev.interrupts import Interrupted, Interrupts, raising_interrupts
from perdure.dev.pidfiles import folder_lock
from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine, locate_engine
from perdure.errors import IngressError, PerdureError
from services.runtime.booking import ORDINARY, book, curl, new_trip_id
from services.runtime.connections import ingress_client
from services.runtime.platform import Platform, stop_leftovers
from services.runtime.settings import PlatformSettings
from services.runtime.topology import CONSOLE, SERVICES, Topology
from services.runtime.trusted_keys import describe_trusted_keys


def run(settings: PlatformSettings, terminal: Terminal) -> int:
    """Run the platform until Ctrl-C, SIGTERM or SIGHUP, then drain and stop all of it.

    Args:
        settings: Ports and folders.
        terminal: Where to say what happens.

    Returns:
        The exit code: 0 after a stop, 128 and the signal's number when the platform wasn't up yet.

    Raises:
        PerdureError: It can't run, or can't go on; nothing is left running.
    """
    topology = Topology.from_settings(settings)
    describe_trusted_keys(os.environ)  # a setting that doesn't fit is told before anything is started
    with folder_lock(topology.run_dir, "perdure-platform run"):
        try:
            with raising_interrupts():
                stop_leftovers(topology.run_dir, terminal.say)
                topology.check_ports()
                engine = find_engine(topology.engine_dir, terminal)
        except Interrupted as interrupt:
            return interrupt.exit_code
        return asyncio.run(_run(topology, engine, terminal))


def find_engine(engine_dir: Path, terminal: Terminal) -> LocatedEngine:
    """Find the engine's binary, which may mean to install it, and say which one it is.

    Args:
        engine_dir: Where npm installs to.
        terminal: Where to say it.

    Raises:
        PerdureError: There is none; see `perdure.engine.locate_engine`.
    """
    terminal.say("looking for restate-server (the first time, npm fetches it)")
    engine = locate_engine(engine_dir)
    for note in engine.notes:
        terminal.say(note)
    terminal.say(f"engine: {engine}")
    return engine


async def _run(topology: Topology, engine: LocatedEngine, terminal: Terminal) -> int:
    platform = Platform(topology, engine, tell=terminal.say, console=True)
    interrupts = Interrupts()
    with interrupts.listening():
        code: int | None = None
        try:
            what = f"the engine, {len(SERVICES)} services and the console"
            terminal.say(f"starting {what}; logs are in {topology.log_dir}")
            await interrupts.unless_asked(platform.start())
            await interrupts.unless_asked(_book_first_trip(platform, terminal))
            _say_where(topology, platform, terminal)
            code = 0
            await interrupts.unless_asked(platform.supervise())
        except Interrupted as interrupt:
            code = interrupt.exit_code if code is None else code
        finally:
            terminal.say("stopping: services finish what they are doing, then the engine stops (Ctrl-C again: at once)")
            await platform.stop(interrupts.hurry)
    terminal.say("stopped")
    return code


async def _book_first_trip(platform: Platform, terminal: Terminal) -> None:
    trip_id = new_trip_id()
    terminal.say(f"booking trip {trip_id}")
    async with ingress_client(platform.topology.ingress_url, platform.codec) as ingress:
        try:
            with terminal.progress() as show:
                confirmation = await book(ingress, trip_id, ORDINARY, show)
        except IngressError as error:
            if error.source != "invocation":
                raise PerdureError(f"trip {trip_id} could not be booked: {error.message}") from error
            # The platform works; it's the kept data or the settings that have no room for this trip.
            terminal.say(f"the trip was refused: {error.message}", "bold red")
        else:
            terminal.print_model(confirmation)


def for_perdure(topology: Topology) -> str | None:
    """Return a line for a shell that tells the command `perdure` where the engine is; None where it looks anyway.

    Args:
        topology: Where things are.
    """
    if (topology.ingress_url, topology.admin_url) == (DEFAULT_INGRESS, DEFAULT_ADMIN):
        return None
    urls = f"PERDURE_INGRESS_URL={topology.ingress_url} PERDURE_ADMIN_URL={topology.admin_url}"
    return f"export {urls}   # for the command perdure"


def _say_where(topology: Topology, platform: Platform, terminal: Terminal) -> None:
    terminal.say()
    terminal.say(f"console        {topology.console_url}  (process {platform.pid(CONSOLE)})")
    terminal.say(f"gateway        {topology.console_url}/gateway  (for who has a key or a session)")
    terminal.say(f"ingress        {topology.ingress_url}")
    terminal.say(f"engine's UI    {topology.admin_url}/ui")
    for spec in SERVICES:
        terminal.say(f"{spec.name:<14} {topology.service_url(spec.name)}  (process {platform.pid(spec.name)})")
    terminal.say(f"data           {topology.home / 'data'}")
    for line in describe_trusted_keys(os.environ):
        terminal.say(line)
    terminal.say()
    # An administrator may decide nothing, unless it is said.
    roles = "--role approver --role operator"
    terminal.say(f"the console's first administrator: {sys.argv[0]} console admin --name you@example.com {roles}")
    terminal.say()
    if export := for_perdure(topology):
        terminal.say(export)
        terminal.say()
    if platform.codec is None:
        terminal.say("book the next trip:")
        terminal.say()
        terminal.say(curl(topology.ingress_url, new_trip_id(), ORDINARY))
    else:
        terminal.say(
            "the ingress takes encrypted requests only; the gateway encrypts them: SECURITY.md shows how to book"
        )
    terminal.say()
    terminal.say("the platform is up; Ctrl-C stops it")

"""Separate platforms for system tests, with fresh data on free ports."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from perdure.dev.foreground import find_engine
from perdure.dev.interrupts import Interrupted, Interrupts, raising_interrupts
from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from services.data_plane.audit import audit
from services.runtime.platform import Platform
from services.runtime.reports import show_audit
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology

T = TypeVar("T")


def run_isolated(
    name: str,
    settings: PlatformSettings,
    terminal: Terminal,
    play: Callable[[Topology, LocatedEngine], Coroutine[Any, Any, int]],
) -> int:
    """Run a system test in a new folder, which is kept only if the test fails.

    Args:
        name: Part of the folder's name.
        settings: Settings with the folder of restate-server.
        terminal: Receives the output.
        play: The test, called with a topology on free ports and the engine; returns the exit code.

    Returns:
        The test's exit code, or 128 plus the signal's number after a signal.

    Raises:
        PerdureError: The platform cannot run. Its data and logs are kept.
    """
    try:
        with raising_interrupts():
            engine = find_engine(Topology.from_settings(settings).engine_dir, terminal)
    except Interrupted as interrupt:
        return interrupt.exit_code
    home = Path(tempfile.mkdtemp(prefix=f"perdure-{name}-"))
    keep = True
    try:
        code = asyncio.run(play(Topology.on_free_ports(home, settings), engine))
        keep = code != 0
    except Interrupted as interrupt:
        code, keep = interrupt.exit_code, False
    finally:
        if keep:
            terminal.say(f"data and logs are kept in {home}")
        else:
            shutil.rmtree(home)
    return code


async def play_on(platform: Platform, play: Callable[[], Coroutine[Any, Any, T]], terminal: Terminal) -> T:
    """Start a platform, run a test on it, and always stop it.

    Args:
        platform: The platform.
        play: The test.
        terminal: Receives the output.

    Raises:
        Interrupted: A signal arrived.
        PerdureError: The platform cannot run.
    """
    interrupts = Interrupts()
    with interrupts.listening():
        try:
            await interrupts.run_until_stopped(platform.start())
            return await interrupts.run_until_stopped(play())
        finally:
            terminal.say("stopping")
            await platform.stop(interrupts.hurry)


async def conclude(topology: Topology, problems: list[str], terminal: Terminal) -> int:
    """Audit the databases after the end of all trips, and print the verdict.

    Args:
        topology: The platform.
        problems: Problems found by the test itself.
        terminal: Receives the output.

    Returns:
        The exit code.
    """
    report = await audit(topology.databases, settled=True)
    show_audit(report, terminal)
    for problem in problems:
        terminal.say(problem, "bold red")
    if problems or not report.ok:
        terminal.say("the audit FAILED", "bold red")
        return 1
    terminal.say("no trip was lost or booked twice", "bold green")
    return 0

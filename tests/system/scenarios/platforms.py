"""Trials: each plays something on a platform of its own, with fresh data on free ports, and removes it afterwards."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from perdure.dev.interrupts import Interrupted, Interrupts, raising_interrupts
from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from services.data_plane.audit import audit
from services.runtime.platform import Platform
from services.runtime.reports import show_audit
from services.runtime.run import find_engine
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology

T = TypeVar("T")


def run_trial(
    name: str,
    settings: PlatformSettings,
    terminal: Terminal,
    play: Callable[[Topology, LocatedEngine], Coroutine[Any, Any, int]],
) -> int:
    """Play a trial in a folder of its own, which is kept only when it fails.

    Args:
        name: What the folder is called after.
        settings: Where npm's restate-server is, or goes.
        terminal: Where to say what happens.
        play: The trial, given free ports in the folder and the engine; it returns the exit code.

    Returns:
        The trial's exit code, or 128 and the signal's number when it was stopped.

    Raises:
        PerdureError: The platform can't be run. Its data and logs are kept.
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
    """Start a platform, play on it, and stop it, whatever happens.

    Args:
        platform: The platform.
        play: What to do when it is up.
        terminal: Where to say that it is stopped.

    Raises:
        Interrupted: A signal came.
        PerdureError: The platform can't be run.
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
    """Audit what trips left behind, and say if all is well.

    Args:
        topology: The platform that they were booked on; no trip is on its way any more.
        problems: What does not hold besides.
        terminal: Where to say it.

    Returns:
        The exit code.
    """
    report = await audit(topology.database_url, settled=True)
    show_audit(report, terminal)
    for problem in problems:
        terminal.say(problem, "bold red")
    if problems or not report.ok:
        terminal.say("NOT everything holds", "bold red")
        return 1
    terminal.say("nothing lost, nothing done twice", "bold green")
    return 0

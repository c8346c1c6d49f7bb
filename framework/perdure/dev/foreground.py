"""A platform in the foreground of a terminal: from the lock of its folder to the stop of all processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from perdure._runtime.disks import ensure_writable
from perdure.dev import ENGINE
from perdure.dev.interrupts import Interrupted, Interrupts, raising_interrupts
from perdure.dev.local import LocalPlatform
from perdure.dev.pidfiles import folder_lock, leftovers, stop
from perdure.dev.processes import STOP_TIMEOUT
from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine, locate_engine

P = TypeVar("P", bound=LocalPlatform)


def run_in_foreground(
    home: Path,
    terminal: Terminal,
    *,
    program: str,
    setting: str,
    engine_dir: Path,
    prepare: Callable[[], None],
    make_platform: Callable[[LocatedEngine], Coroutine[Any, Any, P]],
    run: Callable[[P], Coroutine[Any, Any, None]],
) -> int:
    """Run a platform until SIGINT, SIGTERM or SIGHUP, then drain and stop it.

    Args:
        home: Folder of data, logs and pid files. One command at a time can use it.
        terminal: Receives the output.
        program: Name of the command, for messages.
        setting: Name of the folder's setting, for messages.
        engine_dir: Folder for an installation of restate-server by npm.
        prepare: Checks and prepares what the platform needs, before the engine is located. It may block.
        make_platform: Returns the platform, without starting it.
        run: Announces the started platform and supervises it, until it is cancelled.

    Returns:
        The exit code: 0 after a stop, 128 plus the signal number if the platform was not up yet.

    Raises:
        PerdureError: The platform cannot run. No process is left running.
    """
    ensure_writable(home, setting)
    with folder_lock(home / "run", program, setting):
        try:
            with raising_interrupts():
                stop_leftovers(home / "run", terminal.say)
                prepare()
                engine = find_engine(engine_dir, terminal)
        except Interrupted as interrupt:
            return interrupt.exit_code
        return asyncio.run(_run(engine, terminal, make_platform, run))


async def _run(
    engine: LocatedEngine,
    terminal: Terminal,
    make_platform: Callable[[LocatedEngine], Coroutine[Any, Any, P]],
    run: Callable[[P], Coroutine[Any, Any, None]],
) -> int:
    interrupts = Interrupts()
    with interrupts.listening():
        try:
            platform = await interrupts.run_until_stopped(make_platform(engine))
        except Interrupted as interrupt:
            return interrupt.exit_code
        code: int | None = None
        try:
            await interrupts.run_until_stopped(platform.start())
            code = 0
            await interrupts.run_until_stopped(run(platform))
        except Interrupted as interrupt:
            code = interrupt.exit_code if code is None else code
        finally:
            terminal.say("stopping: services drain, then the engine stops (press Ctrl-C again to stop at once)")
            await platform.stop(interrupts.hurry)
    terminal.say("stopped")
    return code


def find_engine(engine_dir: Path, terminal: Terminal) -> LocatedEngine:
    """Find or install the engine's binary.

    Args:
        engine_dir: Folder for an installation by npm.
        terminal: Receives the output.

    Raises:
        PerdureError: No binary is available, see `perdure.engine.locate_engine`.
    """
    terminal.say("looking for restate-server (npm downloads it on the first run)")
    engine = locate_engine(engine_dir)
    for note in engine.notes:
        terminal.say(note)
    terminal.say(f"engine: {engine}")
    return engine


def stop_leftovers(run_dir: Path, report: Callable[[str], None]) -> None:
    """Stop the remaining processes of an earlier, killed run. Blocks.

    Args:
        run_dir: Folder of the pid files; this process holds its lock.
        report: Receives one line per event.

    Raises:
        PerdureError: A process cannot be stopped.
    """
    found = leftovers(run_dir)
    if not found:
        return
    names = ", ".join(f"{name} (process {process.pid})" for name, process in found.items())
    report(f"stopping the remaining processes of an earlier run: {names}")
    engine = found.pop(ENGINE, None)
    with ThreadPoolExecutor() as threads:  # one that hangs takes the whole time limit
        list(threads.map(lambda process: stop(process, STOP_TIMEOUT), found.values()))
    if engine is not None:
        stop(engine, STOP_TIMEOUT)
    leftovers(run_dir)  # removes the files

"""Ends an engine, or another process, whose owner is gone: even ``kill -9`` closes the owner's end of a pipe.

Linux could end a child with its parent (PR_SET_PDEATHSIG), but means the parent's *thread*, and engines are started
from threads that end. A pipe works everywhere, and closes only when the last process that holds it is gone: that's the
owner, and what it forked without starting another program.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

from perdure.engine import watcher
from perdure.errors import EngineError

__all__ = ["Watchdog"]

_END = 10.0


class Watchdog:
    """A small process that outlives this one for a moment, to end what this one started.

    Args:
        folder: Removed too when this process is gone; None removes nothing.
        ending: The signal that ends what is watched: at once by default; SIGTERM for who has processes of its own.
    """

    def __init__(self, folder: Path | None = None, *, ending: signal.Signals = signal.SIGKILL) -> None:
        self._folder = folder
        self._ending = ending
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start it; it watches nothing yet.

        Raises:
            EngineError: Python can't be started.
        """
        command = [sys.executable, "-I", "-S", str(Path(watcher.__file__)), str(self._ending.value)]
        if self._folder is not None:
            command.append(str(self._folder))
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own file, no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for its owner
            )
        except OSError as error:
            raise EngineError(f"the watchdog of restate-server can't be started: {error.strerror}") from error
        return self

    def watch(self, pid: int) -> None:
        """Watch a process too.

        Args:
            pid: A child of this process that was just started.

        Raises:
            EngineError: The watchdog isn't there.
        """
        try:
            self._tell(str(pid))
        except (BrokenPipeError, ValueError) as error:
            raise EngineError("the watchdog of restate-server has ended, so nobody would end the server") from error

    def dismiss(self) -> None:
        """End it; what it watched is let be."""
        if self._process is None:
            return
        with suppress(BrokenPipeError, ValueError):  # it's gone, as was asked
            self._tell(watcher.DISMISSED)
        self._process.communicate(timeout=_END)
        self._process = None

    def _tell(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise ValueError("the watchdog isn't started")
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

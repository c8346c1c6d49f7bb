"""Watchdog that ends processes, such as an engine, after the process that started them has died.

It detects the death by a closed pipe, which works for ``kill -9`` on every system. Linux's PR_SET_PDEATHSIG is
unsuitable: it refers to the parent's thread, and engines are started from threads that end.
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

_EXIT_TIMEOUT = 10.0


class Watchdog:
    """Process that ends the watched processes after the death of this one.

    Args:
        folder: A folder that it removes as well.
        ending: The signal for the watched processes. Use SIGTERM for processes with children.
    """

    def __init__(self, folder: Path | None = None, *, ending: signal.Signals = signal.SIGKILL) -> None:
        self._folder = folder
        self._ending = ending
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start the watchdog, without watched processes.

        Raises:
            EngineError: Python cannot be started.
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
                start_new_session=True,  # so that Ctrl-C reaches the owner only
            )
        except OSError as error:
            raise EngineError(f"cannot start the watchdog of restate-server: {error.strerror}") from error
        return self

    def watch(self, pid: int) -> None:
        """Watch a child process that was just started.

        Raises:
            EngineError: The watchdog does not run.
        """
        try:
            self._send(str(pid))
        except (BrokenPipeError, ValueError) as error:
            raise EngineError(
                "the watchdog of restate-server has ended: the server would outlive this process"
            ) from error

    def dismiss(self) -> None:
        """End the watchdog and leave the watched processes running."""
        if self._process is None:
            return
        with suppress(BrokenPipeError, ValueError):  # it has ended already
            self._send(watcher.DISMISSED)
        self._process.communicate(timeout=_EXIT_TIMEOUT)
        self._process = None

    def _send(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise ValueError("the watchdog is not started")

        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

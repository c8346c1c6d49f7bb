"""Child processes: start one, wait until it's ready, stop it, and leave nothing of it behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure.dev.pidfiles import PidFile
from perdure.errors import PerdureError
from perdure.security.secrets import PRIVATE_UMASK, open_private

STOP_WITHIN: Final = timedelta(seconds=15)
"""How long a process may take to end after SIGTERM."""

_KILLED_WITHIN: Final = timedelta(seconds=10)
_POLL: Final = 0.05
_TAIL_LINES: Final = 12
_TAIL_BYTES: Final = 32_768


class ProcessError(PerdureError):
    """A process of the platform could not be started, wasn't ready in time, ended by itself, or can't be ended."""


class ManagedProcess(ABC):
    """What the platform needs to know of a process to run it: a service of ours, or the engine."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Its id, None when it isn't running."""

    @abstractmethod
    async def start(self) -> None:
        """Start it, and wait until it's ready.

        Raises:
            PerdureError: It can't be started; nothing is left running.
        """

    @abstractmethod
    async def stop(self, hurry: asyncio.Event) -> bool:
        """Ask it to end (SIGTERM), and end it (SIGKILL) when it doesn't. Does nothing when it has ended.

        Args:
            hurry: Set, it is killed without waiting any longer.

        Returns:
            False when it had to be killed.
        """

    @abstractmethod
    async def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would. Does nothing when it has ended."""

    @abstractmethod
    def how_it_ended(self) -> str | None:
        """Say how it ended by itself; None as long as it runs, or when it was stopped from here."""


class ChildProcess(ManagedProcess):
    """One child process with a log file and a pid file.

    It gets a session of its own: Ctrl-C in the terminal reaches the launcher alone, which then stops its children in
    order.

    Args:
        name: Its name, for messages.
        command: Program and arguments.
        ready: Tells if it's ready; asked until it is.
        environment: Returns its whole environment; asked at each start, so that it can change in between.
        log_file: Takes its output, appended to.
        pid_file: Names it as long as it runs.
        ready_within: How long it may take to be ready.
        stop_within: How long it may take to end after SIGTERM.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        ready: Callable[[], Awaitable[bool]],
        environment: Callable[[], Mapping[str, str]],
        log_file: Path,
        pid_file: Path,
        ready_within: timedelta = timedelta(seconds=30),
        stop_within: timedelta = STOP_WITHIN,
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._command = command
        self._ready = ready
        self._environment = environment
        self._pid_file = PidFile(pid_file)
        self._ready_within = ready_within
        self._stop_within = stop_within
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Its id, None when it isn't running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def start(self) -> None:
        """Start it, and wait until it's ready.

        Raises:
            ProcessError: It can't be run, ended, or wasn't ready in time; the message has the end of its log. Nothing
                is left running.
        """
        if self.pid is not None:
            raise ProcessError(f"{self.name} runs already (process {self.pid}): stop it before starting it again")
        try:
            await self._until_ready(self._spawn())
        except BaseException:
            await self.kill()
            raise

    async def stop(self, hurry: asyncio.Event) -> bool:
        """Ask it to end (SIGTERM), and end it (SIGKILL) when it doesn't. Does nothing when it has ended.

        Args:
            hurry: Set, it is killed without waiting any longer.

        Returns:
            False when it had to be killed.

        Raises:
            ProcessError: It can't be ended.
        """
        if self._process is None:
            return True
        self._process.terminate()
        if not await ended(lambda: self.pid is None, self._stop_within, hurry):
            await self.kill()
            return False
        self._forget()
        return True

    async def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would, with whatever it started itself.

        Raises:
            ProcessError: It doesn't end even so.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            # It leads its own session, so the group is the process and what it may have started.
            os.killpg(self._process.pid, signal.SIGKILL)
        if not await ended(lambda: self.pid is None, _KILLED_WITHIN):
            raise ProcessError(f"{self.name} (process {self._process.pid}) doesn't even end when it is killed")
        self._forget()

    def how_it_ended(self) -> str | None:
        """Say how it ended, ``process 12 ended with code 1``; None as long as it runs, or was stopped from here."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        return f"process {self._process.pid} {describe_end(code)}"

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the last lines that it wrote since it was started.

        Args:
            lines: How many.
        """
        with self.log_file.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log_file, "ab", opener=open_private) as log:
            self._log_start = log.tell()
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(),
                    start_new_session=True,
                    umask=PRIVATE_UMASK,
                )
            except OSError as error:
                raise ProcessError(f"{self.name} can't be run: {self._command[0]}: {error.strerror}") from error
        self._process = process
        self._pid_file.write(process.pid)
        return process

    async def _until_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up = time.monotonic() + self._ready_within.total_seconds()
        while not await self._ready():
            if (code := process.poll()) is not None:
                raise ProcessError(f"{self.name} {describe_end(code)} before it was ready{self._evidence()}")
            if time.monotonic() > give_up:
                seconds = self._ready_within.total_seconds()
                raise ProcessError(f"{self.name} wasn't ready within {seconds:g} s{self._evidence()}")
            await asyncio.sleep(_POLL)

    def _evidence(self) -> str:
        tail = self.log_tail()
        return f"; the end of {self.log_file}:\n{tail}" if tail else f"; {self.log_file} says nothing about it"

    def _forget(self) -> None:
        self._process = None
        self._pid_file.remove()


def describe_end(code: int) -> str:
    """Say in words how a process ended.

    Args:
        code: Its exit code; negative for a signal.
    """
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def ended(gone: Callable[[], bool], within: timedelta, hurry: asyncio.Event | None = None) -> bool:
    """Wait for the end of a process.

    Args:
        gone: Tells if it has ended.
        within: How long to wait.
        hurry: Set, the wait is over at once.

    Returns:
        True when it has ended.
    """
    give_up = time.monotonic() + within.total_seconds()
    while not gone():
        if time.monotonic() > give_up or (hurry is not None and hurry.is_set()):
            return False
        await asyncio.sleep(_POLL)
    return True

"""Child processes: start, wait until ready, stop, clean up."""

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

from perdure._runtime.disks import disk_problem, write_failure
from perdure.dev.pidfiles import PidFile
from perdure.errors import PerdureError
from perdure.security.private_files import PRIVATE_UMASK, open_private

STOP_TIMEOUT: Final = timedelta(seconds=15)
"""How long a process may take to exit after SIGTERM."""

START_TIMEOUT: Final = timedelta(seconds=60)
"""How long a process may take until it answers. A loaded machine needs a multiple of the usual second."""

_KILL_TIMEOUT: Final = timedelta(seconds=10)
_POLL: Final = 0.05
_TAIL_LINES: Final = 12
_TAIL_BYTES: Final = 32_768


class ProcessError(PerdureError):
    """A process could not be started, was not ready in time, ended by itself, or did not exit."""


class ManagedProcess(ABC):
    """A process that the supervisor runs: a service or the engine."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """The process id; None while the process does not run."""

    @abstractmethod
    async def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            PerdureError: The process cannot be started; nothing is left running.
        """

    @abstractmethod
    async def stop(self, hurry: asyncio.Event) -> bool:
        """Stop the process with SIGTERM, and with SIGKILL after a timeout. Does nothing if it has ended.

        Args:
            hurry: When set, the process is killed without further waiting.

        Returns:
            False if the process had to be killed.
        """

    @abstractmethod
    async def kill(self) -> None:
        """Kill the process with SIGKILL, as a crash would. Does nothing if it has ended."""

    @abstractmethod
    def exit_reason(self) -> str | None:
        """Describe how the process ended by itself; None if it runs or was stopped here."""

    async def answers(self) -> bool:
        """Return whether the process answers. A supervised process that does not answer for long is restarted."""
        return True


class ChildProcess(ManagedProcess):
    """A child process with a log file and a pid file.

    It runs in a separate session, so Ctrl-C reaches only the supervisor, which then stops its processes in order.

    Args:
        name: Name of the process in messages.
        command: Program and arguments.
        ready: Returns True while the process answers; polled at start, and while the process is supervised.
        environment: Returns the complete environment; called at each start.
        log_file: Receives the output.
        pid_file: Holds the process id while the process runs.
        ready_timeout: How long the process may take to become ready.
        stop_timeout: How long the process may take to exit after SIGTERM.
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
        ready_timeout: timedelta = START_TIMEOUT,
        stop_timeout: timedelta = STOP_TIMEOUT,
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._command = command
        self._ready = ready
        self._environment = environment
        self._pid_file = PidFile(pid_file)
        self._ready_timeout = ready_timeout
        self._stop_timeout = stop_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process id; None while the process does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            ProcessError: The process cannot be run, ended, or was not ready in time. The message has the end of the
                log. Nothing is left running.
        """
        if self.pid is not None:
            raise ProcessError(f"{self.name} already runs as process {self.pid}")
        try:
            await self._until_ready(self._spawn())
        except OSError as error:
            await self.kill()
            place = error.filename or self.log_file.parent
            raise ProcessError(
                f"{self.name} cannot be started: {place}: {write_failure(error, self.log_file.parent)}"
            ) from error
        except BaseException:
            await self.kill()
            raise

    async def stop(self, hurry: asyncio.Event) -> bool:
        """Stop the process. See `ManagedProcess.stop`.

        Raises:
            ProcessError: The process did not exit after SIGKILL.
        """
        if self._process is None:
            return True
        self._process.terminate()
        if not await wait_for_exit(lambda: self.pid is None, self._stop_timeout, hurry):
            await self.kill()
            return False
        self._remove()
        return True

    async def kill(self) -> None:
        """Kill the process and its children with SIGKILL, as a crash would.

        Raises:
            ProcessError: The process did not exit.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            # The process leads its session, so its group contains its children.
            os.killpg(self._process.pid, signal.SIGKILL)
        if not await wait_for_exit(lambda: self.pid is None, _KILL_TIMEOUT):
            raise ProcessError(f"{self.name} (process {self._process.pid}) did not exit after SIGKILL")
        self._remove()

    def exit_reason(self) -> str | None:
        """Describe how the process ended by itself, for example ``process 12 ended with code 1``."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        return f"process {self._process.pid} {describe_exit(code)}"

    async def answers(self) -> bool:
        """Return whether the process answers."""
        return await self._ready()

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the last lines of the log since the last start.

        Args:
            lines: Maximum number of lines.
        """
        try:
            log = self.log_file.open("rb")
        except FileNotFoundError:  # deleted by a user
            return ""
        with log:
            end = log.seek(0, os.SEEK_END)
            start = self._log_start if self._log_start <= end else 0  # the log may have been rotated
            log.seek(max(start, end - _TAIL_BYTES))
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
                raise ProcessError(f"{self.name} cannot be run: {self._command[0]}: {error.strerror}") from error
        self._process = process
        self._pid_file.write(process.pid)
        return process

    async def _until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._ready_timeout.total_seconds()
        while not await self._ready():
            if (code := process.poll()) is not None:
                raise ProcessError(f"{self.name} {describe_exit(code)} before it was ready{self._log_excerpt()}")
            if time.monotonic() > deadline:
                seconds = self._ready_timeout.total_seconds()
                raise ProcessError(f"{self.name} was not ready within {seconds:g} s{self._log_excerpt()}")
            await asyncio.sleep(_POLL)

    def _log_excerpt(self) -> str:
        problem = disk_problem(self.log_file)
        disk = f"; {problem}" if problem else ""
        tail = self.log_tail()
        return f"{disk}; the end of {self.log_file}:\n{tail}" if tail else f"{disk}; {self.log_file} is empty"

    def _remove(self) -> None:
        self._process = None
        self._pid_file.remove()


def describe_exit(code: int) -> str:
    """Describe how a process ended.

    Args:
        code: Exit code; negative for a signal.
    """
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def wait_for_exit(has_exited: Callable[[], bool], timeout: timedelta, hurry: asyncio.Event | None = None) -> bool:
    """Wait until a process has exited.

    Args:
        has_exited: Returns True once the process has exited.
        timeout: How long to wait.
        hurry: When set, the wait ends at once.

    Returns:
        True if the process has exited.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while not has_exited():
        if time.monotonic() > deadline or (hurry is not None and hurry.is_set()):
            return False
        await asyncio.sleep(_POLL)
    return True

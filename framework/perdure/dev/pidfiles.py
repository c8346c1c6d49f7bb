"""Pid files that never lead to a stranger's process, and the lock that makes a platform's folder one launcher's.

A process id is used again some day, so an id alone does not say whose process it is. Beside ``flights.pid`` (the id,
for ``kill $(cat …)``) lies ``flights.started``: when the system says that this process began. Only both together name
it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure.errors import ConfigurationError, PerdureError
from perdure.security.secrets import PRIVATE_FOLDER, open_private, write_private

_POLL: Final = 0.05
_PROC: Final = Path("/proc")


@dataclass(frozen=True)
class RunningProcess:
    """A process of this machine, told apart from any later one with the same id.

    Args:
        pid: Its id.
        started: When it began, in the system's own words; see `started_at`.
    """

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """True as long as this very process runs."""
        return started_at(self.pid) == self.started


@dataclass(frozen=True)
class PidFile:
    """The pid file of one process.

    Args:
        path: ``<folder>/<name>.pid``.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the process."""
        return self.path.stem

    @property
    def _started(self) -> Path:
        return self.path.with_suffix(".started")

    def write(self, pid: int) -> None:
        """Remember a process that runs now.

        Args:
            pid: Its id.
        """
        started = started_at(pid)
        self.path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        # The id last: a file that is there is complete.
        write_private(self._started, f"{started or 'ended'}\n")
        draft = self.path.with_suffix(".draft")
        write_private(draft, f"{pid}\n")
        draft.replace(self.path)

    def remove(self) -> None:
        """Forget the process."""
        self.path.unlink(missing_ok=True)
        self._started.unlink(missing_ok=True)

    def running(self) -> RunningProcess | None:
        """Return the process if it still runs, None if it has ended or the file is broken."""
        try:
            process = RunningProcess(int(self.path.read_text()), self._started.read_text().strip())
        except (FileNotFoundError, ValueError):
            return None
        return process if process.alive else None


def started_at(pid: int) -> str | None:
    """Return when a process began, as the system tells it; None when there is no such process, or only its remains.

    Args:
        pid: The process.
    """
    if (_PROC / "self").exists():
        return _from_proc(pid)
    return _from_ps(pid)


def _from_proc(pid: int) -> str | None:
    try:
        # The name in brackets may hold anything, so fields are counted behind it: the state first, the start 20th.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        # Ticks count from the start of the system: after another one, the same number is another time.
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else f"{boot} {fields[19]}"


def _from_ps(pid: int) -> str | None:
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],  # noqa: S607 - a system without /proc has its own ps on the PATH
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def leftovers(folder: Path) -> dict[str, RunningProcess]:
    """Return the processes that pid files of a folder name and that still run; remove the files of those that don't.

    Args:
        folder: Where the pid files are.

    Returns:
        The processes, by name.
    """
    found = {}
    for path in sorted(folder.glob("*.pid")):
        file = PidFile(path)
        process = file.running()
        if process is None:
            file.remove()
        else:
            found[file.name] = process
    return found


def stop(process: RunningProcess, within: timedelta) -> bool:
    """Ask a process that is nobody's child any more to end (SIGTERM), and end it (SIGKILL) when it doesn't; blocks.

    Args:
        process: The process.
        within: How long it may take.

    Returns:
        False when it had to be killed.

    Raises:
        PerdureError: It can't be ended.
    """
    if _signalled(process, signal.SIGTERM, within):
        return True
    if not _signalled(process, signal.SIGKILL, timedelta(seconds=5)):
        raise PerdureError(f"process {process.pid} of an earlier run can't be ended: end it by hand")
    return False


def _signalled(process: RunningProcess, number: signal.Signals, within: timedelta) -> bool:
    give_up = time.monotonic() + within.total_seconds()
    try:
        if process.alive:
            os.kill(process.pid, number)
        while process.alive:
            if time.monotonic() > give_up:
                return False
            time.sleep(_POLL)
    except ProcessLookupError:
        return True
    except PermissionError as error:
        raise PerdureError(
            f"process {process.pid} of an earlier run belongs to another user: end it by hand"
        ) from error
    return True


@contextmanager
def folder_lock(folder: Path, what: str) -> Iterator[None]:
    """Hold a platform's folder. The system gives it back when this process ends, however it ends.

    Args:
        folder: Where its pid files are.
        what: What holds it, for the message to the second who wants it.

    Raises:
        ConfigurationError: Another process holds it.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        lock = open(folder / "launcher.lock", "a+", encoding="utf-8", opener=open_private)  # noqa: SIM115 - held below
    except OSError as error:
        raise ConfigurationError(
            f"{folder} can't be used ({error.strerror}): set PERDURE_LOCAL_DIR to a folder that can be written"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip()
            raise ConfigurationError(
                f"{holder or what} runs already in {folder.parent}: stop it first, "
                "or set PERDURE_LOCAL_DIR to another folder and every port to another one"
            ) from error
        lock.truncate(0)
        lock.write(f"{what} (process {os.getpid()})\n")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)

"""Pid files that identify a process reliably, and a lock for the folder of a platform.

The system reuses process ids, so an id alone does not identify a process. ``flights.pid`` holds the id, for
``kill $(cat flights.pid)``, and ``flights.started`` holds the start time of the process.
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
from perdure.security.private_files import PRIVATE_FOLDER, open_private, write_private

_POLL: Final = 0.05
_PROC: Final = Path("/proc")


@dataclass(frozen=True)
class RunningProcess:
    """A process of this machine, identified by its id and start time.

    Args:
        pid: Process id.
        started: Start time, see `started_at`.
    """

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """True while the process runs."""
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
        """Record a running process.

        Args:
            pid: Process id.
        """
        started = started_at(pid)
        self.path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        # The id is written last, so that a pid file implies a start time.
        write_private(self._started, f"{started or 'ended'}\n")
        draft = self.path.with_suffix(".draft")
        write_private(draft, f"{pid}\n")
        draft.replace(self.path)

    def remove(self) -> None:
        """Remove the record."""
        self.path.unlink(missing_ok=True)
        self._started.unlink(missing_ok=True)

    def running(self) -> RunningProcess | None:
        """Return the recorded process; None if it has ended or the file is unreadable."""
        try:
            process = RunningProcess(int(self.path.read_text()), self._started.read_text().strip())
        except (FileNotFoundError, ValueError):
            return None
        return process if process.alive else None


def started_at(pid: int) -> str | None:
    """Return the start time of a process as the system reports it; None if it does not exist or is a zombie.

    Args:
        pid: Process id.
    """
    if (_PROC / "self").exists():
        return _from_proc(pid)
    return _from_ps(pid)


def _from_proc(pid: int) -> str | None:
    try:
        # The name in parentheses may contain anything. Behind it, the state is field 0 and the start time field 19.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        # Ticks count from the boot, so the boot id is part of the start time.
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
    """Return the recorded processes of a folder that still run, by name, and remove the other records.

    Args:
        folder: Folder of the pid files.
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
    """Stop a process that is not a child of this one, with SIGTERM and then SIGKILL. Blocks.

    Args:
        process: The process.
        within: How long it may take to exit after SIGTERM.

    Returns:
        False if the process had to be killed.

    Raises:
        PerdureError: The process did not exit.
    """
    if _exits_after(process, signal.SIGTERM, within):
        return True
    if not _exits_after(process, signal.SIGKILL, timedelta(seconds=5)):
        raise PerdureError(f"process {process.pid} of an earlier run did not exit after SIGKILL: stop it manually")
    return False


def _exits_after(process: RunningProcess, number: signal.Signals, within: timedelta) -> bool:
    deadline = time.monotonic() + within.total_seconds()
    try:
        if process.alive:
            os.kill(process.pid, number)
        while process.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
    except ProcessLookupError:
        return True
    except PermissionError as error:
        raise PerdureError(
            f"process {process.pid} of an earlier run belongs to another user: stop it manually"
        ) from error
    return True


@contextmanager
def folder_lock(folder: Path, holder: str, setting: str = "PERDURE_LOCAL_DIR") -> Iterator[None]:
    """Lock the folder of a platform. The system releases the lock when this process ends.

    Args:
        folder: Folder of the pid files.
        holder: Name of this process, for the error message of a second one.
        setting: Name of the folder's setting, for error messages.

    Raises:
        ConfigurationError: Another process holds the lock.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        lock = open(folder / "platform.lock", "a+", encoding="utf-8", opener=open_private)  # noqa: SIM115 - held below
    except OSError as error:
        raise ConfigurationError(
            f"{folder} is not usable ({error.strerror}): set {setting} to a writable folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise ConfigurationError(
                f"{lock.read().strip() or holder} already runs in {folder.parent}: stop it first, "
                f"or set {setting} to another folder and choose other ports"
            ) from error
        lock.truncate(0)
        lock.write(f"{holder} (process {os.getpid()})\n")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)

"""Process of `perdure.engine.watchdog`, which uses the standard library only.

Its arguments are a signal number and optionally a folder. Each input line is a process ID to watch, or ``dismissed``.
If the input ends without that, the owner has died: the process sends the signal and removes the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

DISMISSED = "dismissed"

_REMOVE_ATTEMPTS = 100
_PAUSE = 0.05


def main() -> int:
    """Watch until dismissed or until the owner dies."""
    number, *folders = sys.argv[1:]
    watched: list[Callable[[], None]] = []
    for line in sys.stdin:
        if line.strip() == DISMISSED:
            return 0
        with suppress(ProcessLookupError):  # it has ended already
            watched.append(_signal_sender(int(line), int(number)))
    for send_signal in watched:
        with suppress(ProcessLookupError):
            send_signal()
    for folder in folders:
        _remove(Path(folder))
    return 0


def _signal_sender(pid: int, number: int) -> Callable[[], None]:
    """Return a function that sends the signal. On Linux, it is safe against reused process IDs."""
    if hasattr(os, "pidfd_open"):
        handle = os.pidfd_open(pid)
        return lambda: signal.pidfd_send_signal(handle, number)
    return lambda: os.kill(pid, number)


def _remove(folder: Path) -> None:
    """Remove the folder, repeatedly, since dying processes may still write to it."""
    for _ in range(_REMOVE_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_PAUSE)


if __name__ == "__main__":
    sys.exit(main())

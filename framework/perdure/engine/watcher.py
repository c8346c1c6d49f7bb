"""The process behind `perdure.engine.watchdog`: runs by itself, with the standard library only.

Its arguments are the number of a signal and, if need be, a folder. It reads lines from its input: a process id to
watch, or ``dismissed``. When the input ends without that, its owner is gone; then it sends the signal to what it
watches, and removes the folder.
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
    """Watch until dismissed, or until the owner is gone."""
    number, *folders = sys.argv[1:]
    watched: list[Callable[[], None]] = []
    for line in sys.stdin:
        if line.strip() == DISMISSED:
            return 0
        with suppress(ProcessLookupError):  # it ended already
            watched.append(_ending(int(line), int(number)))
    for end in watched:
        with suppress(ProcessLookupError):
            end()
    for folder in folders:
        _remove(Path(folder))
    return 0


def _ending(pid: int, number: int) -> Callable[[], None]:
    """Return what sends the signal. On Linux it can't hit a stranger that got the same id later."""
    if hasattr(os, "pidfd_open"):
        handle = os.pidfd_open(pid)
        return lambda: signal.pidfd_send_signal(handle, number)
    return lambda: os.kill(pid, number)


def _remove(folder: Path) -> None:
    """Remove the folder; a process that is just dying may still write to it."""
    for _ in range(_REMOVE_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_PAUSE)


if __name__ == "__main__":
    sys.exit(main())

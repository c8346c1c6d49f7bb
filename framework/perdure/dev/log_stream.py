"""The log files of processes on the terminal, each line with the name of its process.

Processes write to files, so that they outlive their supervisor and their logs stay readable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Final

_POLL: Final = timedelta(milliseconds=150)
_MAX_BYTES: Final = 200_000
_MAX_LINE: Final = 20_000


class LogTail:
    """New lines of a growing file, which may be emptied by a rotation.

    Args:
        path: The file; it begins at its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._partial = b""

    def read(self) -> list[str]:
        """Return the lines that were completed since the last call, at most 200 kB."""
        try:
            with self._path.open("rb") as log:
                end = log.seek(0, 2)
                if end < self._position:
                    self._position, self._partial = 0, b""
                log.seek(self._position)
                data = log.read(_MAX_BYTES)
        except FileNotFoundError:
            return []
        self._position += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _MAX_LINE:
            lines.append(self._partial)
            self._partial = b""
        return [line.decode(errors="replace").rstrip("\r") for line in lines]


async def stream_logs(logs: Iterable[tuple[str, Path]], show: Callable[[str, str], None]) -> None:
    """Show new lines of logs until cancelled.

    Args:
        logs: Name of each process and its log.
        show: Receives the name and a line.
    """
    tails = [(name, LogTail(path)) for name, path in logs]
    while True:
        for name, tail in tails:
            for line in tail.read():
                show(name, line)
        await asyncio.sleep(_POLL.total_seconds())

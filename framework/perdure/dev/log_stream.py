"""The log files of processes on the terminal, each line with the name of its process.

Processes write to files, so that they outlive their supervisor and their logs stay readable.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

_POLL: Final = timedelta(milliseconds=150)
_MAX_BYTES: Final = 200_000
_MAX_LINE: Final = 20_000
_REMEMBERED: Final = 30
_LONG: Final = 3
_FRAME: Final = re.compile(r'[ |+]*File "([^"]+)", line ')
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT")


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


class TracebackFilter:
    """Shortens tracebacks to the project's own frames, and shows each once. The log file has all of them.

    The attempts of a failing handler log the same traceback again and again. A traceback consists of the lines after a
    line with a time. Pure.

    Args:
        root: Folder of the project.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._shown: deque[tuple[str, ...]] = deque(maxlen=_REMEMBERED)
        self._traceback: list[str] = []

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines to show. A traceback comes out when it is complete, at the latest by an empty call."""
        empty = True
        for line in lines:
            empty = False
            if _TIME.match(line):
                yield from self._finished()
                yield line
            else:
                self._traceback.append(line)
        if empty:
            yield from self._finished()

    def _finished(self) -> Iterator[str]:
        block, self._traceback = tuple(self._own_frames(self._traceback)), []
        if len(block) > _LONG and block in self._shown:
            yield f"  {block[-1].strip(' |')} (traceback as before)"
        elif block:
            yield from block
            self._shown.append(block)

    def _own_frames(self, lines: Sequence[str]) -> Sequence[str]:
        """Return a traceback without the frames of libraries; all of it if there are no others."""
        kept: list[str] = []
        frame, own, found = -1, True, False
        for line in lines:
            indent = len(line) - len(line.lstrip(" |+"))
            if match := _FRAME.match(line):
                frame, own = indent, self._is_own(Path(match[1]))
                found |= own
            elif frame >= 0 and indent <= frame:  # not the code of the frame
                frame, own = -1, True
            if own:
                kept.append(line)
        return kept if found else lines

    def _is_own(self, file: Path) -> bool:
        if not file.is_relative_to(self._root):
            return False
        parts = file.relative_to(self._root).parts
        return not any(part.startswith(".") or part == "site-packages" for part in parts)


async def stream_logs(logs: Iterable[tuple[str, Path]], root: Path, show: Callable[[str, str], None]) -> None:
    """Show new lines of logs until cancelled.

    Args:
        logs: Name of each process and its log.
        root: Folder of the project, see `TracebackFilter`.
        show: Receives the name and a line.
    """
    tails = [(name, LogTail(path), TracebackFilter(root)) for name, path in logs]
    while True:
        for name, tail, filter_ in tails:
            for line in filter_.lines(tail.read()):
                show(name, line)
        await asyncio.sleep(_POLL.total_seconds())

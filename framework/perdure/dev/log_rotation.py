"""Rotation of the log files of supervised processes.

A process appends to its log through a descriptor that it inherits, and continues to log if the supervisor is killed. So
the supervisor copies a large log and then empties it, and the process notices nothing. A line that is written between
the two may be missing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure.observability.logging import get_logger
from perdure.security.private_files import open_private

MAX_BYTES: Final = 10_000_000
"""Size from which a log is rotated."""

KEPT: Final = 2
"""Rotated files per log: ``flights.log.1`` is newer than ``flights.log.2``."""

INTERVAL: Final = timedelta(seconds=5)

log = get_logger("perdure.dev")


async def rotate_regularly(folder: Path, *, interval: timedelta = INTERVAL, max_bytes: int = MAX_BYTES) -> None:
    """Rotate the large logs ``*.log`` of a folder at an interval, until cancelled."""
    while True:
        for path in folder.glob("*.log"):  # noqa: ASYNC240 - a folder of a few files
            try:
                await asyncio.to_thread(rotate, path, max_bytes)
            except OSError as error:  # a full disk, for example
                log.warning("log.not_rotated", path=str(path), error=str(error))
        await asyncio.sleep(interval.total_seconds())


def rotate(path: Path, max_bytes: int = MAX_BYTES) -> bool:
    """Move the content of a log to ``<name>.1`` if it is large; return whether it was.

    Raises:
        OSError: A file cannot be written; the log is unchanged.
    """
    if path.stat().st_size < max_bytes:
        return False
    newest = path.with_name(f"{path.name}.1")
    copy = path.with_name(f"{path.name}.copy")  # the glob of `rotate_regularly` does not match it
    try:
        with path.open("rb") as source, open(copy, "wb", opener=open_private) as target:
            shutil.copyfileobj(source, target)
    except OSError:
        copy.unlink(missing_ok=True)
        raise
    for number in range(KEPT, 1, -1):
        older = path.with_name(f"{path.name}.{number - 1}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number}"))
    copy.replace(newest)
    os.truncate(path, 0)
    return True

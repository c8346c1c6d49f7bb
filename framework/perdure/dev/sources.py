"""Changes of a project's Python files, found by polling: no library, and the same on every file system."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeAlias

POLL: Final = timedelta(milliseconds=400)

Snapshot: TypeAlias = Mapping[Path, tuple[int, int]]
"""Time of modification and size of each file."""

_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


def snapshot(root: Path) -> Snapshot:
    """Return the Python files of a project, without hidden folders, environments and caches.

    Args:
        root: Folder of the project.
    """
    found: dict[Path, tuple[int, int]] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name not in _SKIPPED and not Path(folder, name, "pyvenv.cfg").exists()
        ]
        for name in files:
            if name.endswith(".py"):
                path = Path(folder, name)
                try:
                    status = path.stat()
                except FileNotFoundError:  # an editor replaces it at this moment
                    continue
                found[path] = (status.st_mtime_ns, status.st_size)
    return found


def changed(before: Snapshot, after: Snapshot) -> set[Path]:
    """Return the files that were added, removed or modified between two snapshots."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


async def changes(root: Path, *, poll: timedelta = POLL) -> AsyncIterator[set[Path]]:
    """Yield the changed files of a project, each time that its files have come to rest.

    Args:
        root: Folder of the project.
        poll: Time between two looks at the files.
    """
    known = last = await asyncio.to_thread(snapshot, root)
    while True:
        await asyncio.sleep(poll.total_seconds())
        now = await asyncio.to_thread(snapshot, root)
        if now == last and (files := changed(known, now)):  # no change since the last look: a checkout has ended
            known = now
            yield files
        last = now

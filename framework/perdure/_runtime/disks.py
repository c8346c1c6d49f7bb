"""State of a disk, for errors about files that cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from perdure.errors import ConfigurationError

LOW_SPACE: Final = 64 * 1024 * 1024
"""Free bytes below which errors mention the disk, and a platform does not start."""

_FULL: Final = 1024 * 1024
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def disk_problem(path: Path, least: int = LOW_SPACE) -> str | None:
    """Return why the disk of a path accepts few or no writes, or None.

    Args:
        path: A file or folder, which may be missing.
        least: Number of free bytes that is enough.
    """
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    try:
        state = os.statvfs(existing)
    except OSError as error:
        return f"the disk of {existing} cannot be read: {error.strerror}"
    if state.f_flag & os.ST_RDONLY:
        return f"the disk of {existing} is read-only"
    free = state.f_bavail * state.f_frsize
    if free < least:
        space = f"{format_bytes(free)} of {format_bytes(state.f_blocks * state.f_frsize)} free"
        return f"the disk of {existing} {f'is full ({space})' if free < _FULL else f'has only {space}'}"
    if state.f_files and not state.f_favail:
        return f"the disk of {existing} is full (no room for further files)"
    return None


def ensure_writable(folder: Path, setting: str) -> None:
    """Check that the disk of a folder can be written and has some space.

    Args:
        folder: The folder, which may be missing.
        setting: Name of the folder's setting, for the error message.

    Raises:
        ConfigurationError: The disk is read-only or almost full.
    """
    if (problem := disk_problem(folder)) is not None:
        raise ConfigurationError(
            f"{problem}: make it writable with at least {format_bytes(LOW_SPACE)} free, "
            f"or set {setting} to a folder on another disk"
        )


def write_failure(error: OSError, path: Path) -> str:
    """Return the reason of a failed write, with the state of the disk if that is the cause."""
    reason = error.strerror or str(error)
    problem = disk_problem(path) if error.errno in _DISK_ERRORS else None
    return f"{reason} ({problem})" if problem else reason


def format_bytes(count: int) -> str:
    """Return a number of bytes in a readable unit, for example ``1.5 MiB``."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"

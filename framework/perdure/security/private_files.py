"""Files that only their owner may read: data, logs, keys and process ids of everything that runs here."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from perdure.errors import ConfigurationError

__all__ = [
    "PRIVATE_FOLDER",
    "PRIVATE_UMASK",
    "close_folder",
    "make_private_folder",
    "open_private",
    "set_private_umask",
    "write_private",
]

PRIVATE_UMASK: Final = 0o077
"""The bits that no file of this process and its children has."""

PRIVATE_FOLDER: Final = 0o700

_PRIVATE_FILE: Final = 0o600


def set_private_umask() -> None:
    """Let whatever this process and its children create be for their user alone. Call it as a process begins."""
    os.umask(os.umask(PRIVATE_UMASK) | PRIVATE_UMASK)


def open_private(path: str, flags: int) -> int:
    """Open a file so that a new one is for its owner alone; the ``opener`` of `open`.

    Args:
        path: The file.
        flags: How to open it.
    """
    return os.open(path, flags, _PRIVATE_FILE)


def write_private(path: Path, text: str) -> None:
    """Write a text file that is for its owner alone, or replace the content of one.

    Args:
        path: The file.
        text: What to write.

    Raises:
        OSError: It can't be written.
    """
    with open(path, "w", encoding="utf-8", opener=open_private) as file:
        file.write(text)


def make_private_folder(folder: Path) -> None:
    """Make a folder that its owner alone may enter; close one that others may enter.

    Args:
        folder: The folder.

    Raises:
        ConfigurationError: It can't be made, or others may enter it and it can't be closed, since it belongs to
            another user or is shared by all.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise _unusable(f"the folder {folder} can't be made: {error.strerror}") from error
    if not stat.S_IMODE(status.st_mode) & PRIVATE_UMASK:
        return
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_ISVTX or folder == Path(folder.anchor):
        raise _unusable(
            f"others may enter {folder} (mode {stat.S_IMODE(status.st_mode):03o}), and it is not this user's own: "
            "name a folder of your own"
        )
    _close(folder, status)


def close_folder(folder: Path) -> None:
    """Make a folder private with all that is in it. Symbolic links are not followed.

    Args:
        folder: The folder.

    Raises:
        ConfigurationError: See `make_private_folder`; or a file in it can't be closed.
    """
    make_private_folder(folder)
    for path in _below(folder):
        try:
            status = path.lstat()
            if status.st_mode & PRIVATE_UMASK and not stat.S_ISLNK(status.st_mode):
                _close(path, status)
        except FileNotFoundError:  # a process that runs has removed it
            continue


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(root, name)


def _close(path: Path, status: os.stat_result) -> None:
    try:
        path.chmod(stat.S_IMODE(status.st_mode) & ~PRIVATE_UMASK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(f"others may read {path}, and it can't be closed: {error.strerror}") from error


def _unusable(text: str) -> ConfigurationError:
    from perdure.errors import ConfigurationError  # noqa: PLC0415 - it loads Restate's SDK, which a help text needs not

    return ConfigurationError(text)

"""Files and folders that only their owner may access."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from perdure.errors import ConfigurationError


_MAX_FILE_BYTES: Final = 64 * 1024

PRIVATE_UMASK: Final = 0o077
"""The permissions that this process and its children withhold from group and others."""

PRIVATE_FOLDER: Final = 0o700

PRIVATE_FILE: Final = 0o600


def _error(message: str) -> ConfigurationError:
    # Commands set their umask before they import the library, which takes most of their start.
    from perdure.errors import ConfigurationError  # noqa: PLC0415

    return ConfigurationError(message)


def set_private_umask() -> None:
    """Make files that this process and its children create private. Call it at the start of the process."""
    os.umask(os.umask(PRIVATE_UMASK) | PRIVATE_UMASK)


def open_private(path: str, flags: int) -> int:
    """Open a file, created with mode 600: the ``opener`` of `open`."""
    return os.open(path, flags, PRIVATE_FILE)


def write_private(path: Path, text: str) -> None:
    """Write a private text file, or replace its content.

    Raises:
        OSError: The file cannot be written.
    """
    with open(path, "w", encoding="utf-8", opener=open_private) as file:
        file.write(text)


def write_private_file(path: Path, content: bytes) -> None:
    """Write a secret to a new private file. Existing files are never overwritten.

    Raises:
        ConfigurationError: The file exists or cannot be written.
    """
    try:
        path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        # Created with its mode: before a later chmod, others could open it.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    except FileExistsError as error:
        raise _error(f"{path} exists and keys are never overwritten: choose another file") from error
    except OSError as error:
        raise _error(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
    except OSError as error:
        with suppress(OSError):  # do not leave a partial key
            path.unlink()
        raise _error(f"cannot write {path}: {error.strerror}") from error


def read_private_file(path: Path, *, check_mode: bool = True) -> bytes:
    """Read a file that contains a secret.

    Args:
        path: The file.
        check_mode: Refuse a file that other users can read or write. The group may read a file of another user if this
            process can read it only through that group, as with secrets mounted by Kubernetes.

    Raises:
        ConfigurationError: The file is missing, unreadable, too large, or readable by others.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of the open file, since the name can be relinked
            mode = stat.S_IMODE(status.st_mode)
            if check_mode and mode & PRIVATE_UMASK & ~_group_access(status):
                raise _error(f"{path} is readable by others (mode {mode:03o}); run: chmod 600 {path}")
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise _error(f"there is no file {path}") from error
    except OSError as error:
        raise _error(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise _error(f"{path} is not a key file: it is larger than {_MAX_FILE_BYTES} bytes")
    return content


def _group_access(status: os.stat_result) -> int:
    """Return the mode bits that this process needs to read another user's file through its group."""
    owned = status.st_uid == os.geteuid()
    return 0 if owned or status.st_gid not in {os.getegid(), *os.getgroups()} else stat.S_IRGRP


def make_private_folder(folder: Path) -> None:
    """Create a private folder, or make an existing one private.

    Raises:
        ConfigurationError: The folder cannot be created, or others can enter it and its mode cannot be changed because
            it belongs to another user or is shared.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise _error(f"cannot create the folder {folder}: {error.strerror}") from error
    if not stat.S_IMODE(status.st_mode) & PRIVATE_UMASK:
        return
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_ISVTX or folder == Path(folder.anchor):
        raise _error(
            f"others can enter {folder} (mode {stat.S_IMODE(status.st_mode):03o}), which is not owned by this user: "
            "use a folder of your own"
        )
    _remove_access(folder, status)


def close_folder(folder: Path) -> None:
    """Make a folder and its contents private. Symbolic links are not followed.

    Raises:
        ConfigurationError: See `make_private_folder`; also if the mode of a file cannot be changed.
    """
    make_private_folder(folder)
    for path in _contents(folder):
        try:
            status = path.lstat()
            if status.st_mode & PRIVATE_UMASK and not stat.S_ISLNK(status.st_mode):
                _remove_access(path, status)
        except FileNotFoundError:  # removed by a running process
            continue


def _contents(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(root, name)


def _remove_access(path: Path, status: os.stat_result) -> None:
    try:
        path.chmod(stat.S_IMODE(status.st_mode) & ~PRIVATE_UMASK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _error(f"others can read {path}, and chmod failed: {error.strerror}") from error

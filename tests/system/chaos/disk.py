"""Small disks that a chaos run fills: each is a tmpfs, mounted for the run only."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from perdure.errors import PerdureError

_CHUNK: Final = bytes(1024 * 1024)
_MARK: Final = "PERDURE_CHAOS_PRIVATE_MOUNTS"


def enter_private_mounts() -> None:
    """Run this command again in a private mount namespace, if this user may create one.

    The mounts of the run are visible to its own processes only, and end with them, however the run ends.
    """
    if _MARK in os.environ or os.geteuid() != 0 or (unshare := shutil.which("unshare")) is None:
        return
    command = [unshare, "--mount", "--propagation", "private"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        os.environ[_MARK] = "1"
        os.execv(unshare, [*command, sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this command itself


def has_private_mounts() -> bool:
    """Return whether `enter_private_mounts` succeeded."""
    return _MARK in os.environ


class SmallDisk:
    """A folder on a disk of its own. Open it with `on`.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    @contextmanager
    def on(cls, folder: Path, size: int) -> Iterator[SmallDisk]:
        """Mount the disk inside the context. Its files stay in the folder afterwards.

        Args:
            folder: The folder, which is created unless it exists. It is empty.
            size: Size of the disk in bytes.

        Raises:
            PerdureError: The disk cannot be mounted.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "perdure-chaos", str(folder))
        try:
            yield cls(folder)
        finally:
            kept = folder.with_name(f"{folder.name}.kept")
            shutil.copytree(folder, kept, ignore=_special_files)
            _run("umount", "--lazy", str(folder))
            folder.rmdir()
            kept.rename(folder)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fill the disk inside the context."""
        ballast = self._folder / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file, _until_full():
                while True:
                    file.write(_CHUNK)
            yield
        finally:
            ballast.unlink()


@contextmanager
def _until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _special_files(folder: str, names: list[str]) -> list[str]:
    """Return the sockets and pipes of a folder, which cannot be copied."""
    paths = {name: Path(folder, name) for name in names}
    return [name for name, path in paths.items() if not (path.is_file() or path.is_dir())]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PerdureError(f"{command[0]} failed: {done.stderr.strip()}")

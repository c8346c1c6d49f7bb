"""Installation of restate-server by npm, from a lock file with hashes and without install scripts."""

from __future__ import annotations

import fcntl
import logging
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import IO, Final

from perdure._runtime.disks import write_failure
from perdure.errors import EngineError

__all__ = ["NPM_VERSION", "install", "platform_package"]

NPM_VERSION: Final = "1.7.12"
"""The version in package.json and package-lock.json."""

_TIMEOUT_SECONDS = 900
_POLL_SECONDS = 0.1
# Without install scripts, since one of the packages reports installations to its maker.
_COMMAND = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")

logger = logging.getLogger(__name__)


def platform_package() -> str:
    """Return the npm package with the native binary for this machine.

    Raises:
        EngineError: npm has no binary for this machine.
    """
    systems = {"linux": "linux", "darwin": "darwin"}
    machines = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
    system, machine = systems.get(sys.platform), machines.get(platform.machine().lower())
    if system is None or machine is None:
        raise EngineError(
            f"npm has no restate-server for {sys.platform} on {platform.machine()}: "
            "build one and set RESTATE_SERVER_BIN"
        )
    return f"@restatedev/restate-server-{system}-{machine}"


def install(folder: Path, *, installed: Callable[[Path], bool], environment: Mapping[str, str]) -> Path:
    """Install restate-server into a folder if needed, and return the native binary.

    A file lock serialises concurrent installations. Incomplete installations are repeated.

    Args:
        folder: The folder for ``package.json``, ``package-lock.json`` and ``node_modules``.
        installed: A function that returns whether a binary is complete and has the right version.
        environment: The environment variables of npm, whose PATH contains npm.

    Raises:
        EngineError: npm is missing or fails, has no binary for this platform, or the folder cannot be written.
    """
    binary = folder / "node_modules" / platform_package() / "bin" / "restate-server"
    with _exclusive(folder / ".lock"):
        if not installed(binary):
            _run_npm(folder, environment)
            if not installed(binary):
                raise EngineError(
                    f"npm installed restate-server {NPM_VERSION}, but {binary} does not run as that version"
                )
    return binary


def _run_npm(folder: Path, environment: Mapping[str, str]) -> None:
    npm = shutil.which("npm", path=environment.get("PATH", ""))
    if npm is None:
        raise EngineError(
            "neither restate-server nor npm is on the PATH: install Node.js with npm, or set RESTATE_SERVER_BIN to a "
            "restate-server 1.7"
        )
    for name in ("package.json", "package-lock.json"):
        (folder / name).write_bytes(files(__name__).joinpath(name).read_bytes())
    logger.info("installing restate-server %s by npm into %s", NPM_VERSION, folder)
    try:
        result = subprocess.run(  # noqa: S603 - npm from the PATH, fixed arguments, no shell
            [npm, *_COMMAND],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except OSError as error:
        raise EngineError(f"cannot run {npm}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"npm did not install restate-server within {_TIMEOUT_SECONDS} s: check that its registry is reachable"
        ) from error
    if result.returncode != 0:
        raise EngineError(f"npm failed to install restate-server {NPM_VERSION} into {folder}: {_error_text(result)}")


def _error_text(result: subprocess.CompletedProcess[str]) -> str:
    """Return npm's error messages in one line."""
    lines = [line.removeprefix("npm").strip() for line in result.stderr.splitlines()]
    lines = [line.removeprefix("error").removeprefix("ERR!").strip() for line in lines]
    reasons = [line for line in lines if line and not line.startswith("A complete log of this run")]
    return "; ".join(reasons[:3]) or f"exit code {result.returncode}"


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a file lock, which the kernel releases at the end of the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        raise EngineError(f"cannot install restate-server: {path}: {write_failure(error, path)}") from error
    with lock:
        _wait_for(lock, path)
        yield


def _wait_for(lock: IO[str], path: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    is_reported = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise EngineError(
                    f"another process has held {path} for {_TIMEOUT_SECONDS} s: end the process that installs "
                    "restate-server there"
                ) from None
            if not is_reported:
                logger.warning("waiting for another process that installs restate-server into %s", path.parent)
                is_reported = True
            time.sleep(_POLL_SECONDS)
        else:
            return

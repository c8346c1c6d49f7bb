"""Install restate-server by npm, from a pinned lock with hashes, without running anybody's install scripts."""

from __future__ import annotations

import fcntl
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Final

from perdure.errors import EngineError

__all__ = ["NPM_VERSION", "install", "platform_package"]

NPM_VERSION: Final = "1.7.12"
"""The version in package.json and package-lock.json beside this file."""

_TIMEOUT_SECONDS = 900
# No install scripts: one of the packages reports each installation to its makers.
_COMMAND = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")

logger = logging.getLogger(__name__)


def platform_package() -> str:
    """Return the name of the npm package with the native binary for this machine.

    Raises:
        EngineError: There is none.
    """
    systems = {"linux": "linux", "darwin": "darwin"}
    machines = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
    system, machine = systems.get(sys.platform), machines.get(platform.machine().lower())
    if system is None or machine is None:
        raise EngineError(
            f"npm has no restate-server for {sys.platform} on {platform.machine()}: "
            "build one, and name it in RESTATE_SERVER_BIN"
        )
    return f"@restatedev/restate-server-{system}-{machine}"


def install(folder: Path, *, installed: Callable[[Path], bool], environment: Mapping[str, str]) -> Path:
    """Install restate-server into a folder, unless it's there already.

    A file lock makes processes that install at once wait for one another. An installation that was cut off is repeated.

    Args:
        folder: Where to; it gets ``package.json``, ``package-lock.json`` and ``node_modules``.
        installed: Tells if a binary is the complete, right one.
        environment: Variables for npm; its PATH is where npm is looked for.

    Returns:
        The native binary.

    Raises:
        EngineError: npm is missing or failed, or there is no binary for this platform.
    """
    binary = folder / "node_modules" / platform_package() / "bin" / "restate-server"
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / ".lock"):
        if not installed(binary):
            _run_npm(folder, environment)
            if not installed(binary):
                raise EngineError(
                    f"npm installed restate-server {NPM_VERSION}, but {binary} doesn't run as that version"
                )
    return binary


def _run_npm(folder: Path, environment: Mapping[str, str]) -> None:
    npm = shutil.which("npm", path=environment.get("PATH", ""))
    if npm is None:
        raise EngineError(
            "there is no restate-server on the PATH and no npm to install it with: "
            "install Node.js (which has npm), or name a restate-server 1.7 in RESTATE_SERVER_BIN"
        )
    for name in ("package.json", "package-lock.json"):
        (folder / name).write_bytes(files(__name__).joinpath(name).read_bytes())
    logger.info("installing restate-server %s by npm into %s", NPM_VERSION, folder)
    try:
        run = subprocess.run(  # noqa: S603 - npm from the PATH, fixed arguments, no shell
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
        raise EngineError(f"{npm} can't be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"npm didn't install restate-server within {_TIMEOUT_SECONDS} s: is the registry reachable?"
        ) from error
    if run.returncode != 0:
        raise EngineError(f"npm couldn't install restate-server {NPM_VERSION} into {folder}: {_npm_says(run)}")


def _npm_says(run: subprocess.CompletedProcess[str]) -> str:
    """Return npm's own explanation, in one line."""
    lines = [line.removeprefix("npm").strip() for line in run.stderr.splitlines()]
    lines = [line.removeprefix("error").removeprefix("ERR!").strip() for line in lines]
    reasons = [line for line in lines if line and not line.startswith("A complete log of this run")]
    return "; ".join(reasons[:3]) or f"it ended with code {run.returncode}"


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock on a file. The kernel gives it back when the process ends, however it ends."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

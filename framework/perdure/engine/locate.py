"""Find a restate-server to run: an explicit one, the PATH's, or npm's.

Only a server that says it is restate-server 1.7 is taken: another version's journal and SQL may differ.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from perdure.engine.npm import NPM_VERSION, install, platform_package
from perdure.errors import ConfigurationError, EngineError

__all__ = ["BINARY_SETTING", "SERIES", "LocatedEngine", "locate_engine", "server_version"]

SERIES: Final = "1.7"
"""The versions of restate-server that perdure runs on, as major.minor."""

BINARY_SETTING: Final = "RESTATE_SERVER_BIN"
"""Environment variable that names the binary to use."""

Source = Literal["RESTATE_SERVER_BIN", "PATH", "npm"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocatedEngine:
    """A restate-server that was found.

    Args:
        path: The native binary.
        source: Where it came from.
        version: For example ``"1.7.12"``.
        notes: What people should know about the choice, each a sentence; usually empty.
    """

    path: Path
    source: Source
    version: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"restate-server {self.version} from {self.source} ({self.path})"


def locate_engine(install_dir: Path, environment: Mapping[str, str] | None = None) -> LocatedEngine:
    """Find restate-server: from RESTATE_SERVER_BIN, else from the PATH, else by npm, which may take a minute; blocks.

    Args:
        install_dir: Folder that npm installs into when it has to, for example ``.local/engine``. What is there
            already is used again. Several processes may share it.
        environment: Variables to read; the process's own by default.

    Returns:
        The binary, where it came from, and its version.

    Raises:
        ConfigurationError: RESTATE_SERVER_BIN names no restate-server 1.7.
        EngineError: npm is missing or failed, or there is no binary for this platform.
    """
    variables = os.environ if environment is None else environment
    if wanted := variables.get(BINARY_SETTING):
        return _explicit(Path(wanted).expanduser())
    notes: tuple[str, ...] = ()
    if found := shutil.which("restate-server", path=variables.get("PATH", "")):
        binary = _native(Path(found))
        version = _version_or_none(binary)
        if version is not None and _usable(version):
            return LocatedEngine(binary, "PATH", version)
        what = f"is version {version}" if version else "doesn't say its version"
        notes = (f"{found} on the PATH {what}, perdure needs {SERIES}; npm's is used instead",)
        logger.warning(notes[0])
    path = install(install_dir, installed=lambda binary: _version_or_none(binary) == NPM_VERSION, environment=variables)
    return LocatedEngine(path, "npm", server_version(path), notes)


def server_version(binary: Path) -> str:
    """Ask a binary for its version.

    Args:
        binary: A restate-server.

    Returns:
        The version, for example ``"1.7.12"``.

    Raises:
        EngineError: It can't be run, or isn't a restate-server.
    """
    try:
        answer = subprocess.run(  # noqa: S603 - no shell; which binary to ask is the caller's decision
            [binary, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )
    except OSError as error:
        raise EngineError(f"{binary} can't be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{binary} --version doesn't end") from error
    found = re.match(r"restate-server (\d+\.\d+\.\d+\S*)", answer.stdout)
    if answer.returncode != 0 or found is None:
        said = (answer.stdout or answer.stderr).strip().partition("\n")[0]
        raise EngineError(f"{binary} isn't a restate-server: to --version it says {said!r}")
    return found[1]


def _explicit(path: Path) -> LocatedEngine:
    binary = _native(path)
    try:
        version = server_version(binary)
    except EngineError as error:
        raise ConfigurationError(f"{BINARY_SETTING} names no restate-server: {error}") from error
    if not _usable(version):
        raise ConfigurationError(
            f"{BINARY_SETTING} names restate-server {version} ({path}), perdure needs {SERIES}: "
            f"name another, or unset it to take npm's"
        )
    return LocatedEngine(binary, "RESTATE_SERVER_BIN", version)


def _native(path: Path) -> Path:
    """Return the native binary behind npm's launcher script, or the path itself when it is no such script.

    The script runs node, which runs the server: two processes, and a kill of the first leaves the second.
    """
    real = path.resolve()
    package = real.parent.parent
    if real.suffix != ".js" or package.name != "restate-server":
        return path
    name = platform_package()
    for modules in (package.parent.parent, package / "node_modules"):
        if (binary := modules / name / "bin" / "restate-server").is_file():
            return binary
    return path


def _version_or_none(binary: Path) -> str | None:
    try:
        return server_version(binary)
    except EngineError:
        return None


def _usable(version: str) -> bool:
    return version.startswith(f"{SERIES}.")

"""Location of a restate-server binary: configured, on the PATH, or installed by npm.

Only version 1.7 is accepted, since the journal and SQL tables of other versions can differ.
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

SERIES: Final = "1.7"
"""The supported version of restate-server, as major.minor."""

BINARY_SETTING: Final = "RESTATE_SERVER_BIN"
"""The environment variable with the binary's path."""

Source = Literal["RESTATE_SERVER_BIN", "PATH", "npm"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocatedEngine:
    """Located restate-server.

    Args:
        path: The native binary.
        source: The place where it was found.
        version: The version, for example ``"1.7.12"``.
        notes: Warnings about the choice for the user.
    """

    path: Path
    source: Source
    version: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"restate-server {self.version} from {self.source} ({self.path})"


def locate_engine(install_dir: Path, environment: Mapping[str, str] | None = None) -> LocatedEngine:
    """Locate restate-server in RESTATE_SERVER_BIN, on the PATH, or install it by npm. Blocks up to minutes.

    Args:
        install_dir: The folder for npm's installation, for example ``.local/engine``. An existing installation is
            reused. Several processes can share it.
        environment: The environment variables; those of this process by default.

    Raises:
        ConfigurationError: RESTATE_SERVER_BIN is not a restate-server of version 1.7.
        EngineError: npm is missing or failed, or has no binary for this platform.
    """
    variables = os.environ if environment is None else environment
    if configured := variables.get(BINARY_SETTING):
        return _configured(Path(configured).expanduser().absolute())
    notes: tuple[str, ...] = ()
    if on_path := shutil.which("restate-server", path=variables.get("PATH", "")):
        binary = _native_binary(Path(on_path).absolute())
        version = _version_or_none(binary)
        if version is not None and _is_supported(version):
            return LocatedEngine(binary, "PATH", version)
        problem = f"has version {version}" if version else "prints no version"
        notes = (f"{on_path} on the PATH {problem}, Perdure needs {SERIES}: using npm's instead",)
        logger.warning(notes[0])
    path = install(
        install_dir.absolute(), installed=lambda binary: _version_or_none(binary) == NPM_VERSION, environment=variables
    )
    return LocatedEngine(path, "npm", server_version(path), notes)


def server_version(binary: Path) -> str:
    """Return the version of a restate-server binary, for example ``"1.7.12"``.

    Raises:
        EngineError: The binary cannot be run or is not a restate-server.
    """
    try:
        result = subprocess.run(  # noqa: S603 - no shell; the caller chooses the binary
            [binary, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )
    except OSError as error:
        raise EngineError(f"cannot run {binary}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{binary} --version timed out") from error
    match = re.match(r"restate-server (\d+\.\d+\.\d+\S*)", result.stdout)
    if result.returncode != 0 or match is None:
        output = (result.stdout or result.stderr).strip().partition("\n")[0]
        raise EngineError(f"{binary} is not a restate-server: --version prints {output!r}")
    return match[1]


def _configured(path: Path) -> LocatedEngine:
    binary = _native_binary(path)
    try:
        version = server_version(binary)
    except EngineError as error:
        raise ConfigurationError(f"{BINARY_SETTING} is not a restate-server: {error}") from error
    if not _is_supported(version):
        raise ConfigurationError(
            f"{BINARY_SETTING} is restate-server {version} ({path}), Perdure needs {SERIES}: "
            f"set another path, or unset it to use npm's"
        )
    return LocatedEngine(binary, "RESTATE_SERVER_BIN", version)


def _native_binary(path: Path) -> Path:
    """Return the native binary of npm's launcher script, or the path of another file.

    The script runs the server as a child of node, which survives a kill of node.
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


def _is_supported(version: str) -> bool:
    return version.startswith(f"{SERIES}.")

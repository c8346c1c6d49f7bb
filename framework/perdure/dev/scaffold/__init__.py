"""Projects and their parts, from the templates in this package.

A template's name ends with ``.tmpl``, so that no tool takes it for code. Its fields are written ``%{field}``.
"""

from __future__ import annotations

import keyword
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any, Final, Literal

from perdure.engine.npm import NPM_VERSION
from perdure.errors import ConfigurationError

Kind = Literal["service", "saga", "schedule"]

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_RESERVED: Final = frozenset(
    {"act", "add", "conftest", "entries", "module", "remove", "run", "schedule", "tests", "undo", "work"}
)
"""Names that the templates use themselves."""

_PROJECT: Final = {
    "README.md": "README.md",
    "Makefile": "Makefile",
    "pyproject.toml": "pyproject.toml",
    "Dockerfile": "Dockerfile",
    "compose.yml": "compose.yml",
    ".github/workflows/ci.yml": "ci.yml",
    ".gitignore": "gitignore",
    ".dockerignore": "dockerignore",
    "%{package}/__init__.py": "package.py",
    "%{package}/contracts.py": "contracts.py",
    "%{package}/database.py": "database.py",
    "%{package}/orders.py": "orders.py",
    "%{package}/stock.py": "stock.py",
    "tests/__init__.py": "init_tests.py",
    "tests/conftest.py": "conftest.py",
    "tests/test_orders.py": "test_orders.py",
}
_SERVICES: Final = re.compile(r"^(SERVICES := |ENV SERVICES=\")[^\"\n]*", re.MULTILINE)


class _Template(Template):
    delimiter = "%"


@dataclass(frozen=True)
class Part:
    """A part that was added to a project.

    Args:
        files: The new files, relative to the project.
        module: The new module.
        listed: The files whose list of modules now has the module.
    """

    files: list[str]
    module: str
    listed: list[str]


def create_project(name: str, parent: Path, *, version: str) -> list[str]:
    """Create a project in a new folder and return its files.

    Args:
        name: Name of the folder and of the package in it.
        parent: The folder to create it in.
        version: The version of perdure that the project requires.

    Raises:
        ConfigurationError: The name is unsuitable, or the folder exists.
    """
    check_name(name)
    folder = parent / name
    if folder.exists():
        raise ConfigurationError(f"{folder} exists already: choose another name, or remove it")
    values = {"package": name, "version": version, "engine": NPM_VERSION}
    return _write(folder, {target: f"project/{source}" for target, source in _PROJECT.items()}, values)


def add_part(kind: Kind, name: str, project: Path) -> Part:
    """Add a service, saga or schedule with its test to a project.

    Args:
        kind: The kind of the part.
        name: Name of the module.
        project: The project's folder.

    Raises:
        ConfigurationError: The name is unsuitable, the folder is no project, or a file exists already.
    """
    check_name(name)
    package = _package_of(project)
    values = {"package": package, "name": name, "Service": "".join(word.title() for word in name.split("_"))}
    targets = {f"{package}/{name}.py": f"{kind}/{kind}.py", f"tests/test_{name}.py": f"{kind}/test_{kind}.py"}
    written = _write(project, targets, values)
    module = f"{package}.{name}"
    return Part(written, module, [file for file in ("Makefile", "Dockerfile") if _list_module(project / file, module)])


def check_name(name: str) -> None:
    """Check that a name is suitable for a module.

    Raises:
        ConfigurationError: It is not, with the reason.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"'{name}' cannot be the name of a module: use up to 40 small letters, digits and '_', a letter first"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in _RESERVED:
        raise ConfigurationError(f"'{name}' is a reserved name: choose another one")
    if find_spec(name) is not None:
        raise ConfigurationError(f"'{name}' is the name of an installed module: choose another one")


def _package_of(project: Path) -> str:
    try:
        settings: Mapping[str, Any] = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
        return str(settings["tool"]["perdure"]["package"])
    except (FileNotFoundError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{project} is no Perdure project: run the command in a folder that `perdure new NAME` has created, or "
            'name the package in its pyproject.toml: [tool.perdure] package = "shop"'
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{project / 'pyproject.toml'} cannot be read: {error}") from error


def _write(folder: Path, targets: Mapping[str, str], values: Mapping[str, str]) -> list[str]:
    """Write rendered templates; nothing if one of the files exists."""
    templates = files(__name__)
    rendered = {
        _Template(target).substitute(values): _Template(
            templates.joinpath(f"{source}.tmpl").read_text(encoding="utf-8")
        ).substitute(values)
        for target, source in targets.items()
    }
    if existing := [name for name in rendered if (folder / name).exists()]:
        raise ConfigurationError(f"{', '.join(existing)} exists already: choose another name, or remove it")
    for name, content in rendered.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return sorted(rendered)


def _list_module(file: Path, module: str) -> bool:
    """Add a module to the list of a Makefile or Dockerfile; return whether the file has such a list."""
    if not file.exists():
        return False
    content, changed = _SERVICES.subn(rf"\g<0> {module}", file.read_text(encoding="utf-8"), count=1)
    file.write_text(content, encoding="utf-8")
    return bool(changed)

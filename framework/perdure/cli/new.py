"""`perdure new`: creates a project, or adds a service, saga or schedule to one."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final, cast, get_args

import typer

from perdure.dev.scaffold import Kind, add_part, create_project
from perdure.errors import ConfigurationError
from perdure.terminal import console

_KINDS: Final = get_args(Kind)


def new(
    words: Annotated[
        list[str], typer.Argument(metavar="[service|saga|schedule] NAME", help="What to create, and its name.")
    ],
) -> None:
    """Create a project in a new folder, or add a service, saga or schedule to the project in this folder.

    perdure new shop: a project of two services with a saga, an approval, tests and containers.

    perdure new service billing: the module billing, and its test.
    """
    if len(words) == 1 and words[0] not in _KINDS:
        name = words[0]
        for file in create_project(name, Path.cwd(), version=version("perdure")):
            console.say(f"created {name}/{file}")
        console.say(f"next: cd {name} && make test && make run")
    elif len(words) == 2 and words[0] in _KINDS:
        kind = cast("Kind", words[0])
        part = add_part(kind, words[1], Path.cwd())
        for file in part.files:
            console.say(f"created {file}")
        console.say(f"added {part.module} to {' and '.join(part.listed)}" if part.listed else _how_to_run(part.module))
    else:
        raise ConfigurationError(
            f"'perdure new {' '.join(words)}' is not complete: write `perdure new NAME` for a project, or "
            f"`perdure new {'|'.join(_KINDS)} NAME` for a part of one"
        )


def _how_to_run(module: str) -> str:
    return f"next: add {module} to the modules of `perdure dev` and `perdure serve`"

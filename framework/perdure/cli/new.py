"""`perdure new`: creates a project, or adds a service, saga or schedule to one."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final, cast, get_args

import typer
from pydantic import BaseModel

from perdure.cli.options import JsonOption, UsageError, print_answer
from perdure.dev.scaffold import Kind, add_part, create_project

_KINDS: Final = get_args(Kind)


class Created(BaseModel):
    """Result of the command.

    Args:
        files: The new files.
        module: The new module of a part; None for a project.
        listed: The files whose list of modules now has the module.
    """

    files: list[str]
    module: str | None = None
    listed: list[str] = []


def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="service, saga or schedule; omit it for a project.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The name, such as shop.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Create a project, or add a service, saga or schedule to one.

    perdure new shop creates the folder shop: two services with a saga, an approval, tests and containers.

    perdure new service billing adds the module billing and its test to the project in this folder.
    """
    if name is None and kind not in _KINDS:
        created = Created(
            files=[f"{kind}/{file}" for file in create_project(kind, Path.cwd(), version=version("perdure"))]
        )
        then = f"next: cd {kind} && make test && make run"
    elif name is not None and kind in _KINDS:
        part = add_part(cast("Kind", kind), name, Path.cwd())
        created = Created(files=part.files, module=part.module, listed=part.listed)
        then = f"added {part.module} to {' and '.join(part.listed)}" if part.listed else _how_to_run(part.module)
    else:
        raise UsageError(
            f"'perdure new {kind}{f' {name}' if name else ''}': write `perdure new NAME` for a project, or "
            f"`perdure new {'|'.join(_KINDS)} NAME` for a part of one"
        )
    print_answer(created, as_json, *(f"created {file}" for file in created.files), then)


def _how_to_run(module: str) -> str:
    return f"next: add {module} to the modules of `perdure dev` and `perdure serve`"

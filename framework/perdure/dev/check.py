"""Check of a service module in a separate process: ``python -m perdure.dev.check MODULE RESULT``.

`perdure dev` checks new code before it replaces a running process. The check imports the module, migrates its database
and writes a `ModuleCheck` to a file; an error is printed on standard error.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from perdure.errors import ConfigurationError
from perdure.observability.logging import configure_logging
from perdure.security.private_files import set_private_umask, write_private
from perdure.serving.modules import load_modules


class ModuleCheck(BaseModel):
    """Services of a module, and its files.

    Args:
        services: Names of its services.
        files: The imported files of the project.
    """

    services: list[str]
    files: list[Path]


async def check_module(module: str, environment: Mapping[str, str], folder: Path) -> ModuleCheck:
    """Check a module of the project in the working directory, in a process.

    Args:
        module: Name of the module.
        environment: Environment of the process.
        folder: A folder for the result.

    Raises:
        ConfigurationError: The module cannot be served; the message says why.
    """
    result = folder / f"{module}.check"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        __spec__.name,
        module,
        str(result),
        env=environment,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    try:
        if process.returncode == 0:
            return ModuleCheck.model_validate_json(result.read_text())
    finally:
        result.unlink(missing_ok=True)
    text = errors.decode(errors="replace").strip()
    raise ConfigurationError(text or f"the check of {module} ended with code {process.returncode}")


def main(name: str, result: Path) -> None:
    """Check a module, and write the result to a file.

    Raises:
        ConfigurationError: The module cannot be served.
    """
    configure_logging()  # to standard output, while errors go to standard error
    (module,) = load_modules([name])
    module.run_migration()
    root = Path.cwd()
    files = {Path(file) for each in list(sys.modules.values()) if (file := getattr(each, "__file__", None))}
    own = sorted(file for file in files if file.is_relative_to(root) and file.suffix == ".py")
    write_private(result, ModuleCheck(services=module.service_names, files=own).model_dump_json())


if __name__ == "__main__":
    set_private_umask()
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except ConfigurationError as failure:
        sys.exit(str(failure))

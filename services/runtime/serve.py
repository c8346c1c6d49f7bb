"""Serve one service: ``python -m services.runtime.serve flights``.

This module imports nothing of the other commands, so that a service starts quickly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from pydantic import ValidationError

from perdure._runtime.lazy import paused_collector
from perdure.errors import ConfigurationError
from perdure.security.private_files import set_private_umask
from services.runtime.topology import service


def serve(name: str) -> int:
    """Serve a service until SIGTERM or SIGINT, and return the exit code.

    Args:
        name: Name of the service, for example ``flights``.

    Raises:
        ConfigurationError: The service does not exist, or one of its settings is invalid.
    """
    with paused_collector():
        main: Callable[[], int] = import_module(service(name).module).main
    try:
        return main()
    except ValidationError as error:
        problems = "; ".join(f"{_variable(name, str(each['loc'][0]))}: {each['msg']}" for each in error.errors())
        raise ConfigurationError(f"invalid settings of {name}: {problems}") from error


def _variable(service_name: str, field: str) -> str:
    """Return the environment variable of a field. Shared settings use the variable as the field's name."""
    return field if field.startswith("PERDURE_") else f"PERDURE_{service_name}_{field}".upper()


if __name__ == "__main__":
    set_private_umask()
    try:
        sys.exit(serve(*sys.argv[1:2] or [""]))
    except ConfigurationError as error:
        sys.exit(str(error))

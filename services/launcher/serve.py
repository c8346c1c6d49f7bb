"""One service in this process. Kept apart from the rest: a service has no use for the launcher's libraries.

python -m services.launcher.serve flights
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from pydantic import ValidationError

from perdure.errors import ConfigurationError
from services.launcher.topology import service


def serve(name: str) -> int:
    """Serve a service until SIGTERM or Ctrl-C.

    Args:
        name: The service, for example ``flights``.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: There is no such service, or one of its settings does not fit.
    """
    main: Callable[[], int] = import_module(service(name).module).main
    try:
        return main()
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigurationError(f"{name}: a setting does not fit: {problems}") from error


if __name__ == "__main__":
    try:
        sys.exit(serve(*sys.argv[1:2] or [""]))
    except ConfigurationError as error:
        sys.exit(str(error))

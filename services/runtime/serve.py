"""One service in this process. Kept apart from the rest: a service has no use for the launcher's libraries.

python -m services.runtime.serve flights
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from pydantic import ValidationError

from perdure.errors import ConfigurationError
from perdure.security.secrets import set_private_umask
from services.runtime.topology import service


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
        problems = "; ".join(f"{_variable(name, str(each['loc'][0]))}: {each['msg']}" for each in error.errors())
        raise ConfigurationError(f"a setting of {name} does not fit: {problems}") from error


def _variable(service_name: str, field: str) -> str:
    """Return the variable that a field comes from; what several services share is named by it already."""
    return field if field.startswith("PERDURE_") else f"PERDURE_{service_name}_{field}".upper()


if __name__ == "__main__":
    set_private_umask()
    try:
        sys.exit(serve(*sys.argv[1:2] or [""]))
    except ConfigurationError as error:
        sys.exit(str(error))

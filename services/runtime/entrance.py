"""Entry point of `perdure-platform`.

`serve` and `engine-proxy` start without importing the other commands, which would take a second of CPU.
"""

from __future__ import annotations

import os
import sys

from perdure._runtime.plain_text import escape_invisible
from perdure.errors import PerdureError
from perdure.security.private_files import set_private_umask


def main() -> None:
    """Run the command line."""
    set_private_umask()
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] == "serve" and not arguments[1].startswith("-"):
        sys.exit(_serve(arguments[1]))
    if arguments == ["engine-proxy"]:
        sys.exit(_serve_proxy())
    from perdure.terminal import run_command_line  # noqa: PLC0415 - not loaded by the commands above
    from services.runtime.cli import app  # noqa: PLC0415 - likewise

    run_command_line("perdure-platform", app)


def _serve(name: str) -> int:
    from services.runtime.secret_files import read_environment_files  # noqa: PLC0415 - as above
    from services.runtime.serve import serve  # noqa: PLC0415

    try:
        read_environment_files(os.environ)
        return serve(name)
    except PerdureError as error:
        sys.stderr.write(f"perdure-platform: {escape_invisible(str(error))}\n")  # noqa: TID251 - escaped
        return 1


def _serve_proxy() -> int:
    from perdure.engine.proxy import ProxySettings, serve_proxy  # noqa: PLC0415 - as above

    try:
        return serve_proxy(ProxySettings.read())
    except PerdureError as error:
        sys.stderr.write(f"perdure-platform: {escape_invisible(str(error))}\n")  # noqa: TID251 - escaped
        return 1


if __name__ == "__main__":
    main()

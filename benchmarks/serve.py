"""One variant of the saga in this process, served as the platform serves its services.

python -m benchmarks.serve perdure calls Trips 9090
"""

from __future__ import annotations

import os
import sys
from typing import Final, cast

from benchmarks.variants import Shape, Variant, definitions
from perdure.serving import HttpVersion, app, serve

SILENT: Final = "PERDURE_BENCH_SILENT"
"""Set, this process counts nothing of what happens in handlers."""


def main(variant: str, shape: str, name: str, port: str, http: str = "auto") -> int:
    """Serve a variant until SIGTERM.

    Args:
        variant: How the saga is written.
        shape: What its steps are.
        name: The workflow's name.
        port: Where to listen.
        http: The protocol to speak, see `perdure.serving.serve`.

    Returns:
        The exit code.
    """
    services = definitions(Variant(variant), Shape(shape), name)
    if os.environ.get(SILENT):
        setattr(app, "record_metrics", lambda: None)  # noqa: B010 - no name of the module's own, for type checkers
    return serve(*services, port=int(port), http=cast("HttpVersion", http))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

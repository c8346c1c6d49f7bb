"""Serve one variant of the saga in this process.

python -m benchmarks.serve perdure calls Trips 9090
"""

from __future__ import annotations

import os
import sys
from typing import Final, cast

from benchmarks.variants import Shape, Variant, definitions
from perdure.serving import HttpVersion, app, serve

SILENT: Final = "PERDURE_BENCH_SILENT"
"""Variable that turns off metrics of handlers in this process."""


def main(variant: str, shape: str, name: str, port: str, http: str = "auto") -> int:
    """Serve a variant until SIGTERM.

    Args:
        variant: The variant.
        shape: Kind of the steps.
        name: The workflow's name.
        port: The port.
        http: The protocol, see `perdure.serving.serve`.

    Returns:
        The exit code.
    """
    services = definitions(Variant(variant), Shape(shape), name)
    if os.environ.get(SILENT):
        setattr(app, "record_metrics", lambda: None)  # noqa: B010 - not declared by the module, for type checkers
    return serve(*services, port=int(port), http=cast("HttpVersion", http))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

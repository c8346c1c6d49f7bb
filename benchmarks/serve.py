"""One variant of the saga in this process, served as the platform serves its services.

python -m benchmarks.serve perdure calls Trips 9090
"""

from __future__ import annotations

import sys
from typing import cast

from benchmarks.variants import Shape, Variant, definitions
from perdure.serving import HttpVersion, serve


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
    return serve(*services, port=int(port), http=cast("HttpVersion", http))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

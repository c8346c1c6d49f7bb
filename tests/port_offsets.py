"""Free ports for `perdure dev`."""

from __future__ import annotations

import random
from pathlib import Path

from perdure.dev.project import Project
from perdure.errors import ConfigurationError


def free_offset() -> int:
    """Return an offset of free ports below the range that `perdure._runtime.ports` leases."""
    for offset in random.sample(range(1_200, 10_500, 100), 93):
        try:
            Project.of(["shop.orders", "shop.stock"], root=Path("/shop"), port_offset=offset).check_ports()
        except ConfigurationError:
            continue
        return offset
    raise AssertionError("no free ports")

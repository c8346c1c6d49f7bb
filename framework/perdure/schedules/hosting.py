"""What the process serves that hosts schedules."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.handlers import Definition
from perdure.schedules.dispatcher import build_dispatcher
from perdure.schedules.index import build_index
from perdure.schedules.service import build_schedules


def definitions(*, targets: Sequence[str] = ("*",)) -> list[Definition]:
    """Return what to serve: `Schedules`, their index and their dispatcher, which belong together.

    Args:
        targets: Which handlers may be scheduled, as patterns of ``Service/handler`` such as ``Reports/*``. A schedule
            starts handlers that are private on the ingress, too, so name them where others can reach the ingress.
            Perdure's own services can't be scheduled.
    """
    return [build_schedules(targets), build_index(), build_dispatcher()]

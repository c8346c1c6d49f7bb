"""The saga service's process: it hosts `Rollbacks`, `DeadLetters` and `Schedules`, and the sentinel watches."""

from __future__ import annotations

from perdure import schedules
from perdure.saga import hosting
from perdure.saga.reconciler import Sentinel
from perdure.serving import serve
from services.control_plane.saga.settings import SagaServiceSettings
from services.protection import security


def main() -> int:
    """Serve `Rollbacks`, `DeadLetters` and `Schedules`; return the exit code."""
    settings = SagaServiceSettings()
    sentinel = Sentinel(settings.sentinel())
    return serve(
        *hosting.definitions(forget_after=settings.forget_after),
        *schedules.definitions(targets=settings.schedule_targets),
        sentinel,
        host=settings.host,
        port=settings.port,
        lifespan=sentinel.watching,
        security=security(),
    )

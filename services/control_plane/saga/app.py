"""The saga service: `Rollbacks`, `DeadLetters`, `Schedules`, alerts and the saga reconciler."""

from __future__ import annotations

from perdure import schedules
from perdure.saga import hosting
from perdure.saga.reconciler import SagaReconciler
from perdure.serving import serve
from services.control_plane.saga.settings import SagaServiceSettings
from services.protection import security


def main() -> int:
    """Run the saga service and return the exit code."""
    settings = SagaServiceSettings()
    reconciler = SagaReconciler(settings.reconciler())
    return serve(
        *hosting.definitions(retention=settings.retention),
        *schedules.definitions(targets=settings.schedule_targets),
        reconciler,
        host=settings.host,
        port=settings.port,
        security=security(),
    )

"""The saga service's process: it hosts `Rollbacks` and `DeadLetters`, and the sentinel watches."""

from __future__ import annotations

from perdure.saga import hosting
from perdure.saga.sentinel import Sentinel
from perdure.serving import serve
from services.control_plane.saga.settings import SagaServiceSettings


def main() -> int:
    """Serve `Rollbacks` and `DeadLetters`; return the exit code."""
    settings = SagaServiceSettings()
    sentinel = Sentinel(settings.sentinel())
    return serve(*hosting.definitions(), sentinel, host=settings.host, port=settings.port, lifespan=sentinel.watching)

"""The saga service's process: it hosts the library's `Rollbacks` and `DeadLetters`."""

from __future__ import annotations

from perdure.saga import hosting
from perdure.serving import serve
from services.control_plane.saga.settings import SagaServiceSettings


def main() -> int:
    """Serve `Rollbacks` and `DeadLetters`; return the exit code."""
    settings = SagaServiceSettings()
    return serve(*hosting.definitions(), host=settings.host, port=settings.port)

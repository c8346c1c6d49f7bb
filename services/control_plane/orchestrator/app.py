"""The orchestrator's process."""

from __future__ import annotations

from perdure.serving import serve
from services.control_plane.orchestrator.handlers import trips_service
from services.control_plane.orchestrator.settings import OrchestratorSettings
from services.protection import security


def main() -> int:
    """Serve `Trips`; return the exit code."""
    settings = OrchestratorSettings()
    return serve(trips_service(settings), host=settings.host, port=settings.port, security=security())

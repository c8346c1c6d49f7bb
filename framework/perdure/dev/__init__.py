"""Run services and an engine on one machine during development."""

from typing import Final

ENGINE: Final = "restate-server"
"""Name of the engine's process, used for its pid file and log."""

ENGINE_PROXY: Final = "engine-proxy"
"""Name of the proxy's process, which rejects requests of web pages to the engine."""

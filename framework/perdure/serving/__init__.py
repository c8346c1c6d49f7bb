"""Serving of handlers: a process with health, readiness, logs, and a stop that drains.

Example:
    raise SystemExit(serve(flights, port=9081, readiness={"database": database.ping}, lifespan=database.opened))
"""

from __future__ import annotations

from perdure.serving.app import HasBackgroundWork, HasDefinitions, ReadinessCheck, Servable, ServiceApp, build_app
from perdure.serving.drain import Drain
from perdure.serving.process import serve, serve_async
from perdure.serving.server import HttpVersion, listening

__all__ = [
    "Drain",
    "HasBackgroundWork",
    "HasDefinitions",
    "HttpVersion",
    "ReadinessCheck",
    "Servable",
    "ServiceApp",
    "build_app",
    "listening",
    "serve",
    "serve_async",
]

"""Engine: restate-server as a child process, and clients of its ingress and admin API."""

from __future__ import annotations

from perdure.engine.config import EngineConfig
from perdure.engine.locate import LocatedEngine, locate_engine, server_version
from perdure.engine.process import EngineProcess

__all__ = ["EngineConfig", "EngineProcess", "LocatedEngine", "locate_engine", "server_version"]

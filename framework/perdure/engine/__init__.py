"""The engine under perdure: find a restate-server, and run one as a child process."""

from __future__ import annotations

from perdure.engine.config import EngineConfig
from perdure.engine.locate import LocatedEngine, locate_engine, server_version
from perdure.engine.process import EngineProcess

__all__ = ["EngineConfig", "EngineProcess", "LocatedEngine", "locate_engine", "server_version"]

"""Engine proxy: a reverse proxy in front of the engine that refuses requests of web pages."""

from __future__ import annotations

from perdure.engine.proxy.app import EngineProxy
from perdure.engine.proxy.process import serve_proxy
from perdure.engine.proxy.settings import ProxySettings
from perdure.engine.proxy.upstream import Upstream

__all__ = ["EngineProxy", "ProxySettings", "Upstream", "serve_proxy"]

"""A reverse proxy in front of the engine that refuses web pages. See `perdure.engine_proxy.app`."""

from __future__ import annotations

from perdure.engine_proxy.app import EngineProxy
from perdure.engine_proxy.process import serve_proxy
from perdure.engine_proxy.settings import ProxySettings
from perdure.engine_proxy.upstream import Upstream

__all__ = ["EngineProxy", "ProxySettings", "Upstream", "serve_proxy"]

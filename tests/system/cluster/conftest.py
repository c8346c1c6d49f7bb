from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from perdure.engine import LocatedEngine, locate_engine
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.system.scenarios.harness import harness_environment

Running = Callable[[Path], AbstractAsyncContextManager[Platform]]


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> LocatedEngine:
    """The installed engine."""
    return locate_engine(pytestconfig.rootpath / ".local" / "engine")


@pytest.fixture
def running(engine: LocatedEngine) -> Running:
    """Runs a platform in a folder inside a context. The folder may contain data."""

    @asynccontextmanager
    async def run(home: Path) -> AsyncIterator[Platform]:
        topology = Topology.on_free_ports(home, PlatformSettings.read())
        platform = Platform(topology, engine, report=print, environment=harness_environment(os.environ))
        try:
            await platform.start()
            yield platform
        finally:
            await platform.stop(asyncio.Event())

    return run

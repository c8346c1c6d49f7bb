from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from perdure._runtime.ports import free_ports
from perdure.engine import LocatedEngine, locate_engine
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.e2e.console_platform import browser, console, contexts, playwright
from tests.e2e.launched import processes_of
from tests.postgres import Postgres, running_postgres
from tests.system.scenarios.harness import Harness, harness_environment

__all__ = ["browser", "console", "contexts", "playwright"]  # fixtures for several files


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> LocatedEngine:
    """The installed engine."""
    return locate_engine(pytestconfig.rootpath / ".local" / "engine")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server on a port, with a database and a user for each data-plane service."""
    (port,) = free_ports(1)
    with running_postgres(port) as server:
        server.create_service_databases()
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def harness(
    engine: LocatedEngine, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Harness]:
    """A platform on PostgreSQL with fresh data. Its tests run in the session's loop, see `tests.plugins.parallel`.

    Other platforms of these tests use SQLite, the default.
    """
    topology = Topology.on_free_ports(tmp_path_factory.mktemp("harness"), PlatformSettings())
    topology = replace(topology, databases=postgres.service_urls())
    platform = Platform(topology, engine, report=print, environment=harness_environment(os.environ))
    try:
        await platform.start()
        async with Harness.on(platform) as opened:
            yield opened
    finally:
        await platform.stop(asyncio.Event())


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Folder of a platform. All its processes must have ended at the end of the test."""
    folder = tmp_path / "platform"
    yield folder
    assert processes_of(folder) == []

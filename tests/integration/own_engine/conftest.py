"""An engine per module, because a reconciler handles all sagas of an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from perdure.engine.admin import AdminClient
from perdure.testing import Mode, Restate, RestateServer
from perdure.testing.plugin import RestateServers


@pytest.fixture(scope="module")
def engine(restate_servers: RestateServers, restate_mode: Mode) -> Iterator[RestateServer]:
    suspending = restate_mode is Mode.ALWAYS_SUSPENDING
    with RestateServer(install_dir=restate_servers.install_dir, always_suspending=suspending) as server:
        yield server


@pytest.fixture
async def restate(engine: RestateServer, restate_mode: Mode) -> AsyncIterator[Restate]:
    restate = Restate(engine, restate_mode)
    yield restate
    await restate.close()


@pytest.fixture
async def admin(engine: RestateServer) -> AsyncIterator[AdminClient]:
    async with AdminClient(engine.admin) as admin:
        yield admin

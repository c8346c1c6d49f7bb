"""pytest plug-in: the fixture `restate`, which runs a test on a real engine in three modes.

    pytest_plugins = ["perdure.testing.plugin"]

    async def test_greets(restate):
        env = await restate.serve(greeter)
        ...                                     # call env.ingress

    @pytest.mark.restate_modes("http2")         # only some of the modes

restate-server is taken from RESTATE_SERVER_BIN, from the PATH, or from npm. The first test that needs it starts it, and
the end of the session stops it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from perdure.testing.served import Mode, Restate
from perdure.testing.server import RestateServer

__all__ = ["RestateServers"]

_MARK = "restate_modes"
_INSTALL_DIR = "perdure_engine_dir"


class RestateServers:
    """The engines of a test session, each started when it's first needed.

    Args:
        install_dir: Folder that npm installs restate-server into if need be.
    """

    def __init__(self, install_dir: Path) -> None:
        self.install_dir = install_dir
        self._stack = ExitStack()
        self._servers: dict[bool, RestateServer] = {}

    def for_mode(self, mode: Mode) -> RestateServer:
        """Return the running engine for a mode.

        Args:
            mode: How it is to talk to services.
        """
        suspending = mode is Mode.ALWAYS_SUSPENDING
        if suspending not in self._servers:
            server = RestateServer(install_dir=self.install_dir, always_suspending=suspending)
            self._servers[suspending] = self._stack.enter_context(server)
        return self._servers[suspending]

    def close(self) -> None:
        """Stop all of them."""
        self._servers.clear()
        self._stack.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare where npm installs restate-server."""
    parser.addini(_INSTALL_DIR, "folder for a restate-server from npm, relative to the root", default=".local/engine")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line("markers", f"{_MARK}(*modes): run a test with the fixture `restate` in these modes only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses `restate` once for each mode."""
    if "restate" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker(_MARK)
    modes = [Mode(name) for name in mark.args] if mark else list(Mode)
    metafunc.parametrize("restate", modes, indirect=True, ids=[mode.value for mode in modes])


@pytest.fixture(scope="session")
def restate_servers(pytestconfig: pytest.Config) -> Iterator[RestateServers]:
    """The engines of this session."""
    servers = RestateServers(pytestconfig.rootpath / str(pytestconfig.getini(_INSTALL_DIR)))
    yield servers
    servers.close()


@pytest_asyncio.fixture
async def restate(restate_servers: RestateServers, request: pytest.FixtureRequest) -> AsyncIterator[Restate]:
    """Serve services to a real engine, in the mode of this run of the test."""
    mode: Mode = request.param
    fixture = Restate(restate_servers.for_mode(mode), mode)
    yield fixture
    await fixture.close()

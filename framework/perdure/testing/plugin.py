"""pytest plugin for tests on a real engine, in three modes.

Enable it in the ``conftest.py`` of the root test folder:

    pytest_plugins = ["perdure.testing.plugin"]

and use its fixtures:

    greeting = restate_fixture(greeter)         # served once per module and mode

    async def test_greets(greeting):
        async with IngressClient(greeting.ingress) as ingress:
            ...

    async def test_greets_in_french(restate):   # served for this test only
        env = await restate.serve(greeter)

    @pytest.mark.restate_modes("http2")         # overrides the default modes; for a module, use pytestmark
    async def test_in_one_mode(greeting): ...

A test without the mark runs in the modes of the ini option ``perdure_modes``, by default ``all``. The command-line
option ``--restate-modes`` replaces the ini option and restricts marked tests to its modes.

The engine is restate-server from RESTATE_SERVER_BIN, the PATH or npm. It starts with the first test that needs it and
stops with the session, even if the session is killed. With pytest-xdist, each worker has its own engines.

The plugin is not a pytest entry point, since perdure is also installed where no tests need an engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from perdure._runtime.time_scale import scaling
from perdure.security.config import SecurityConfig
from perdure.serving import Servable
from perdure.testing.background import BackgroundLoop
from perdure.testing.served import Mode, Restate, RestateEnvironment
from perdure.testing.server import RestateServer

_MARK = "restate_modes"
_OPTION = "--restate-modes"
_DEFAULT_MODES = "perdure_modes"
_INSTALL_DIR = "perdure_engine_dir"
_ALL = "all"


class RestateServers:
    """Engines of a test session, started on first use.

    Args:
        install_dir: The folder for a restate-server from npm.
    """

    def __init__(self, install_dir: Path) -> None:
        self.install_dir = install_dir
        self._stack = ExitStack()
        self._servers: dict[bool, RestateServer] = {}

    def for_mode(self, mode: Mode) -> RestateServer:
        """Return the running engine for a mode."""
        suspending = mode is Mode.ALWAYS_SUSPENDING
        if suspending not in self._servers:
            server = RestateServer(install_dir=self.install_dir, always_suspending=suspending)
            self._servers[suspending] = self._stack.enter_context(server)
        return self._servers[suspending]

    def close(self) -> None:
        """Stop all engines."""
        self._servers.clear()
        self._stack.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options for the engine folder and the modes."""
    parser.addini(_INSTALL_DIR, "folder for a restate-server from npm, relative to the root", default=".local/engine")
    parser.addini(_DEFAULT_MODES, f"modes of tests without the mark {_MARK}", type="args", default=[_ALL])
    modes = ", ".join(Mode)
    parser.getgroup("perdure").addoption(
        _OPTION, metavar="MODES", help=f"run engine tests in these modes only: {modes}, or {_ALL}"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line("markers", f"{_MARK}(*modes): run an engine test in these modes, or in '{_ALL}'")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize engine tests by mode."""
    if "restate_mode" not in metafunc.fixturenames:
        return
    option: str | None = metafunc.config.getoption(_OPTION)
    requested = None if option is None else _modes(_OPTION, option.split(","))
    mark = metafunc.definition.get_closest_marker(_MARK)
    if mark is not None:
        own = _modes(f"the mark {_MARK} of {metafunc.definition.nodeid}", mark.args)
        modes = own if requested is None else [mode for mode in own if mode in requested]
    elif requested is not None:
        modes = requested
    else:
        modes = _modes(f"the setting {_DEFAULT_MODES}", metafunc.config.getini(_DEFAULT_MODES))
    ids = [mode.value for mode in modes]
    # With module scope, pytest groups the tests of a module by mode, so services are served once per mode.
    metafunc.parametrize("restate_mode", modes, indirect=True, ids=ids, scope="module")


def restate_fixture(*services: Servable, security: SecurityConfig | None = None) -> Callable[..., Any]:
    """Return a fixture that serves services to a real engine, once per module and mode.

    Assign it to a module variable, whose name becomes the name of the fixture. Its value is a `RestateEnvironment`.
    State and workflow keys outlive a test, since the tests share the services: use unique keys.

    Args:
        services: The services to serve.
        security: The security configuration, see `perdure.serving.build_app`.
    """

    @pytest.fixture(scope="module")
    def environment(restate_module: Restate) -> RestateEnvironment:
        with _loop() as loop:
            return loop.call(restate_module.serve(*services, security=security))

    return environment


@pytest.fixture(scope="session")
def restate_servers(pytestconfig: pytest.Config) -> Iterator[RestateServers]:
    """The engines of the test session."""
    servers = RestateServers(pytestconfig.rootpath / str(pytestconfig.getini(_INSTALL_DIR)))
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def restate_mode(request: pytest.FixtureRequest) -> Mode:
    """The engine mode of this run of the test."""
    mode: Mode = request.param
    return mode


@pytest.fixture(scope="module")
def restate_module(restate_servers: RestateServers, restate_mode: Mode) -> Iterator[Restate]:
    """Serves services to a real engine for the tests of a module in one mode; see `restate_fixture`."""
    fixture = Restate(restate_servers.for_mode(restate_mode), restate_mode)
    yield fixture
    with _loop() as loop:
        loop.call(fixture.close())


@pytest_asyncio.fixture
async def restate(restate_servers: RestateServers, restate_mode: Mode) -> AsyncIterator[Restate]:
    """Serves services to a real engine during a test."""
    fixture = Restate(restate_servers.for_mode(restate_mode), restate_mode)
    yield fixture
    await fixture.close()


@pytest.fixture
def time_scale() -> Iterator[Callable[[float], None]]:
    """Shortens durations during a test: with ``time_scale(3600)``, an hour lasts a second."""
    with ExitStack() as stack:
        yield lambda scale: stack.enter_context(scaling(scale))


def _loop() -> BackgroundLoop:
    return BackgroundLoop("perdure-restate")


def _modes(source: str, names: Sequence[str]) -> list[Mode]:
    stripped = [name.strip() for name in names]
    if stripped == [_ALL]:
        return list(Mode)
    try:
        return [Mode(name) for name in stripped]
    except ValueError as error:
        raise pytest.UsageError(f"{source}: {error}; the modes are {', '.join(Mode)}, or {_ALL}") from error

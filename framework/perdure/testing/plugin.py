"""pytest plugin for tests on a real engine, in three modes, and in a fourth one on the next engine.

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
option ``--restate-modes`` replaces the ini option and restricts marked tests to its modes. The mode ``vqueues`` is not
part of ``all``, and tests that are marked for ``http2`` also run in it.

An async test that uses the engine fails after the ini option ``perdure_timeout`` (60 seconds; 0 for no limit). The
failure names the invocations that have not ended, with their last failures.

The engine is restate-server from RESTATE_SERVER_BIN, the PATH or npm. It starts with the first test that needs it and
stops with the session, even if the session is killed. With pytest-xdist, each worker has its own engines.

The plugin is not a pytest entry point, since perdure is also installed where no tests need an engine.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from perdure._runtime.time_scale import scaling
from perdure.engine.admin import AdminClient, failure_message
from perdure.security.config import SecurityConfig
from perdure.serving import Servable
from perdure.testing.background import BackgroundLoop
from perdure.testing.served import Mode, Restate, RestateEnvironment
from perdure.testing.server import RestateServer

try:
    import pytest
    import pytest_asyncio
except ModuleNotFoundError as missing:
    needed = f"{missing.name} is not installed, which perdure.testing.plugin needs; pip install 'perdure[testing]'"
    raise ModuleNotFoundError(needed, name=missing.name) from missing

_MARK = "restate_modes"
_OPTION = "--restate-modes"
_DEFAULT_MODES = "perdure_modes"
_INSTALL_DIR = "perdure_engine_dir"
_TIMEOUT = "perdure_timeout"
_ALL = "all"
_MAX_FAILURE: Final = 300
_OPEN_INVOCATIONS: Final = (
    "select id, target, status, retry_count, last_failure from sys_invocation where status != 'completed' "
    "order by created_at limit 20"
)
_SERVERS = pytest.StashKey["RestateServers"]()


class RestateServers:
    """Engines of a test session, started on first use.

    Args:
        install_dir: The folder for a restate-server from npm.
    """

    def __init__(self, install_dir: Path) -> None:
        self.install_dir = install_dir
        self._stack = ExitStack()
        self._servers: dict[Mode, RestateServer] = {}

    def for_mode(self, mode: Mode) -> RestateServer:
        """Return the running engine for a mode."""
        kind = Mode.HTTP2 if mode is Mode.REQUEST_RESPONSE else mode  # they differ in the services only
        if kind not in self._servers:
            server = RestateServer(
                install_dir=self.install_dir,
                always_suspending=kind is Mode.ALWAYS_SUSPENDING,
                vqueues=True if kind is Mode.VQUEUES else None,
            )
            self._servers[kind] = self._stack.enter_context(server)
        return self._servers[kind]

    async def open_invocations(self) -> str:
        """Return the invocations that have not ended, one per line, with their last failures."""
        lines = []
        for server in self._servers.values():
            async with AdminClient(server.admin) as admin:
                lines += [_describe(row) for row in await admin.query(_OPEN_INVOCATIONS)]
        return "\n".join(lines) or "none"

    def close(self) -> None:
        """Stop all engines."""
        self._servers.clear()
        self._stack.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options for the engine folder and the modes."""
    parser.addini(_INSTALL_DIR, "folder for a restate-server from npm, relative to the root", default=".local/engine")
    parser.addini(_DEFAULT_MODES, f"modes of tests without the mark {_MARK}", type="args", default=[_ALL])
    parser.addini(_TIMEOUT, "time limit of an async engine test in seconds; 0 for no limit", default="60")
    modes = ", ".join(Mode)
    parser.getgroup("perdure").addoption(
        _OPTION, metavar="MODES", help=f"run engine tests in these modes only: {modes}, or {_ALL}"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and check the time limit."""
    _timeout(config)
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
        if Mode.HTTP2 in own and Mode.VQUEUES not in own and requested is not None:
            own.append(Mode.VQUEUES)
        modes = own if requested is None else [mode for mode in own if mode in requested]
    elif requested is not None:
        modes = requested
    else:
        modes = _modes(f"the setting {_DEFAULT_MODES}", metafunc.config.getini(_DEFAULT_MODES))
    ids = [mode.value for mode in modes]
    # With module scope, pytest groups the tests of a module by mode, so services are served once per mode.
    metafunc.parametrize("restate_mode", modes, indirect=True, ids=ids, scope="module")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Limit the time of an async engine test."""
    limit = _timeout(item.config)
    test = getattr(item, "obj", None)
    if limit and "restate_mode" in getattr(item, "fixturenames", ()) and inspect.iscoroutinefunction(test):
        item.obj = _limited(test, limit, item.config)  # type: ignore[attr-defined] # pytest.Function
    return (yield)


def _timeout(config: pytest.Config) -> float:
    text = str(config.getini(_TIMEOUT))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise pytest.UsageError(f"the setting {_TIMEOUT} must be a number of seconds, or 0 for no limit; got {text!r}")
    return limit


def _limited(test: Callable[..., Any], limit: float, config: pytest.Config) -> Callable[..., Any]:
    @functools.wraps(test)
    async def limited(*args: Any, **kwargs: Any) -> None:
        deadline = asyncio.timeout(limit)
        try:
            async with deadline:
                await test(*args, **kwargs)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            still_open = await config.stash[_SERVERS].open_invocations()
            message = f"the test did not end within {limit:g} s ({_TIMEOUT}). Invocations not ended:\n{still_open}"
            raise pytest.fail.Exception(message) from error

    return limited


def _describe(row: Mapping[str, Any]) -> str:
    failure = failure_message(row.get("last_failure"))
    return f"  {row['target']} ({row['id']}): {row['status']}, {row.get('retry_count') or 0} failed attempts" + (
        f", last failure: {' '.join(failure.split())[:_MAX_FAILURE]}" if failure else ""
    )


def restate_fixture(
    *services: Servable, security: SecurityConfig | None = None, host_platform: bool = False
) -> Callable[..., Any]:
    """Return a fixture that serves services to a real engine, once per module and mode.

    Assign it to a module variable, whose name becomes the name of the fixture. Its value is a `RestateEnvironment`.
    State and workflow keys outlive a test, since the tests share the services: use unique keys.

    Args:
        services: The services to serve.
        security: The security configuration, see `perdure.serving.build_app`.
        host_platform: Also serve rollbacks, dead letters, approvals and schedules, which sagas need.
    """

    @pytest.fixture(scope="module")
    def environment(restate_module: Restate) -> RestateEnvironment:
        with _loop() as loop:
            return loop.call(restate_module.serve(*services, security=security, host_platform=host_platform))

    return environment


@pytest.fixture(scope="session")
def restate_servers(pytestconfig: pytest.Config) -> Iterator[RestateServers]:
    """The engines of the test session."""
    servers = RestateServers(pytestconfig.rootpath / str(pytestconfig.getini(_INSTALL_DIR)))
    pytestconfig.stash[_SERVERS] = servers
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
        return [mode for mode in Mode if mode is not Mode.VQUEUES]
    try:
        return [Mode(name) for name in stripped]
    except ValueError as error:
        raise pytest.UsageError(f"{source}: {error}; the modes are {', '.join(Mode)}, or {_ALL}") from error

"""restate-server for tests, with temporary data and free ports, which are released even if the test is killed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from perdure._runtime.ports import free_ports
from perdure.engine import EngineConfig, EngineProcess, locate_engine
from perdure.engine.watchdog import Watchdog
from perdure.errors import ConfigurationError
from perdure.testing.background import BackgroundLoop

# Test data need not survive a crash of the machine, and fsync takes most of the time of a step on a slow disk.
_TEST_SETTINGS = {
    "RESTATE_LOG_SERVER__ROCKSDB_DISABLE_WAL_FSYNC": "true",
    "RESTATE_BIFROST__LOCAL__ROCKSDB_DISABLE_WAL_FSYNC": "true",
    "RESTATE_ADMIN__DISABLE_WEB_UI": "true",
    # A larger state is read entry by entry. By default, the engine pauses the handlers of a state over 32 MiB.
    "RESTATE_WORKER__INVOKER__EAGER_STATE_SIZE_LIMIT": "8MiB",
}
_MEMORY = 256 * 1024 * 1024
_ATTEMPTS = 5


@dataclass(kw_only=True)
class RestateServer:
    """restate-server of a test session; a context manager.

    If this process is killed, a watchdog stops the server and removes its data.

    Args:
        install_dir: The npm folder, used if neither RESTATE_SERVER_BIN nor the PATH has a server.
        always_suspending: Suspend invocations at each wait, which makes every step a replay and reveals code that is
            not deterministic.
        vqueues: Whether the features are on that Restate 1.8 enables by default, see `EngineConfig`.
        partitions: The number of partitions.
        identity_key_file: The private key that signs requests to services; None for unsigned requests.
        settings: Further environment variables of the server.
    """

    install_dir: Path
    always_suspending: bool = False
    vqueues: bool | None = None
    partitions: int = 1
    identity_key_file: Path | None = None
    settings: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Initialize without starting the server."""
        self._engine: EngineProcess | None = None
        self._folder: Path | None = None
        self._watchdog: Watchdog | None = None

    @property
    def ingress(self) -> str:
        """URL of the ingress."""
        return self.engine.ingress_url

    @property
    def admin(self) -> str:
        """URL of the admin API."""
        return self.engine.admin_url

    @property
    def engine(self) -> EngineProcess:
        """The server process, for tests that kill and restart it."""
        if self._engine is None:
            raise RuntimeError("the server is not running; use it as a context manager")
        return self._engine

    def __enter__(self) -> Self:
        """Start the server and wait until it is ready.

        Raises:
            ConfigurationError: RESTATE_SERVER_BIN names no usable server.
            EngineError: The server cannot be installed or started.
        """
        binary = locate_engine(self.install_dir).path
        self._folder = Path(tempfile.mkdtemp(prefix="perdure-restate-"))
        loop = BackgroundLoop("perdure-restate").start()
        try:
            self._watchdog = Watchdog(self._folder).start()
            self._engine = loop.call(_start(binary, self._config, self._watchdog))
        except BaseException:
            self._clean_up()
            raise
        finally:
            loop.stop()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and remove its data."""
        loop = BackgroundLoop("perdure-restate").start()
        try:
            loop.call(self.engine.stop())
        finally:
            loop.stop()
            self._clean_up()

    def _clean_up(self) -> None:
        if self._watchdog is not None:
            self._watchdog.dismiss()
        if self._folder is not None:
            shutil.rmtree(self._folder)
        self._engine = self._folder = self._watchdog = None

    def _config(self) -> EngineConfig:
        assert self._folder is not None  # noqa: S101 - set by __enter__
        ingress, admin, node = free_ports(3)
        return EngineConfig(
            data_dir=self._folder / "data",
            ingress_port=ingress,
            admin_port=admin,
            node_port=node,
            partitions=self.partitions,
            inactivity_timeout=timedelta(0) if self.always_suspending else None,
            vqueues=self.vqueues,
            rocksdb_memory=_MEMORY,
            identity_key_file=self.identity_key_file,
            extra={**_TEST_SETTINGS, **(self.settings or {})},
        )


async def _start(binary: Path, config: Callable[[], EngineConfig], watchdog: Watchdog) -> EngineProcess:
    for attempt in range(1, _ATTEMPTS + 1):
        engine = EngineProcess(binary, config(), on_spawn=watchdog.watch)
        try:
            await engine.start()
        except ConfigurationError:  # another process has taken one of the ports
            if attempt == _ATTEMPTS:
                raise
        else:
            return engine
    raise AssertionError("unreachable")

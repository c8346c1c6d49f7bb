"""Run one restate-server as a child process: start it, wait until it answers, stop it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from perdure._runtime.ports import connectable, ensure_free
from perdure._runtime.tls import tls_context
from perdure.engine.config import LOOPBACK, EngineConfig
from perdure.errors import EngineError
from perdure.security.private_files import PRIVATE_UMASK, make_private_folder, open_private

__all__ = ["EngineProcess"]

_POLL = 0.02
_TAIL_LINES = 12

logger = logging.getLogger(__name__)


class EngineProcess:
    """A restate-server process of this machine.

    The process gets a session of its own: Ctrl-C in the terminal reaches whoever started it, not the engine, so that
    services can drain while it still runs. It may be started in one event loop and stopped in another.

    Args:
        binary: The native restate-server binary, see `perdure.engine.locate`.
        config: Its settings.
        on_spawn: Told the process id at each start, before anything is waited for.
    """

    def __init__(self, binary: Path, config: EngineConfig, on_spawn: Callable[[int], None] | None = None) -> None:
        self.binary = binary
        self.config = config
        self._on_spawn = on_spawn
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None when it isn't started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """True from start to the end of the process, however it ends."""
        return self._process is not None and self._process.poll() is None

    @property
    def ingress_url(self) -> str:
        """Address of the ingress."""
        return self.config.ingress_url

    @property
    def admin_url(self) -> str:
        """Address of the admin API."""
        return self.config.admin_url

    async def start(self, timeout: timedelta = timedelta(seconds=30)) -> None:
        """Start the process and wait until its ingress and admin API both answer.

        Args:
            timeout: How long to wait until it's ready.

        Raises:
            ConfigurationError: One of its ports is taken.
            EngineError: It ended, or wasn't ready in time; the message has the end of its log. Nothing is left running.
        """
        if self.running:
            raise EngineError("restate-server is already running; stop it before starting it again")
        for setting, port in self.config.ports().items():
            ensure_free(LOOPBACK, port, setting)
        pid = self._spawn()
        try:
            if self._on_spawn is not None:
                self._on_spawn(pid)
            await self._ready(timeout)
        except BaseException:
            await self.kill()
            raise

    async def stop(self, timeout: timedelta = timedelta(seconds=15)) -> None:
        """Ask the process to stop (SIGTERM), and kill it when the timeout is over. Does nothing when it has ended.

        Args:
            timeout: How long it may take to flush and end.
        """
        if self._process is None:
            return
        self._process.terminate()
        if not await self._ended(timeout):
            logger.warning("restate-server (pid %d) didn't stop within %s and is killed", self._process.pid, timeout)
            await self.kill()

    async def kill(self) -> None:
        """End the process at once (SIGKILL), as a crash would. Does nothing when it has ended."""
        if self._process is None:
            return
        self._process.kill()
        await self._ended(timedelta(seconds=10))

    async def __aenter__(self) -> Self:
        """Start, with the default timeout."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, with the default timeout."""
        await self.stop()

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the last lines of the process's output.

        Args:
            lines: How many.
        """
        try:
            with self.config.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 32_768))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _spawn(self) -> int:
        # The engine's data and log hold requests and results, in clear unless the journal is encrypted.
        make_private_folder(self.config.data_dir)
        if self.config.sockets:  # the folder of the sockets, so that it can be opened before they are there
            make_private_folder(self.config.ingress_socket.parent)
        self.config.log_path.parent.mkdir(parents=True, exist_ok=True)
        # Settings in the caller's own environment were meant for another server, and would win over ours.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RESTATE_")}
        try:
            with open(self.config.log_path, "ab", opener=open_private) as log:
                self._process = subprocess.Popen(  # noqa: S603 - the binary is the one that was located, no shell
                    [self.binary, "--no-logo"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=inherited | self.config.environment(),
                    cwd=self.config.data_dir,
                    start_new_session=True,
                    umask=PRIVATE_UMASK,
                )
        except OSError as error:
            raise EngineError(f"restate-server at {self.binary} can't be run: {error.strerror}") from error
        return self._process.pid

    async def _ready(self, limit: timedelta) -> None:
        give_up = time.monotonic() + limit.total_seconds()
        probes = (
            (f"{self.admin_url}/health", self.config.admin_socket),
            (f"{self.ingress_url}/restate/health", self.config.ingress_socket),
        )
        for url, path in probes:
            async with self._probe(path) as http:
                while not await _healthy(http, url):
                    self._fail_if_ended()
                    if time.monotonic() > give_up:
                        place = str(path) if self.config.sockets else url
                        raise EngineError(
                            f"restate-server wasn't ready within {limit.total_seconds():g} s ({place} doesn't answer); "
                            f"the end of {self.config.log_path}:\n{self.log_tail()}"
                        )
                    await asyncio.sleep(_POLL)
        self._fail_if_ended()

    @asynccontextmanager
    async def _probe(self, path: Path) -> AsyncIterator[httpx.AsyncClient]:
        """Open a client that asks one listener: at its port, or at its socket."""
        with connectable(path) if self.config.sockets else nullcontext() as uds:
            transport = httpx.AsyncHTTPTransport(uds=uds, verify=tls_context())
            async with httpx.AsyncClient(timeout=2, trust_env=False, transport=transport) as http:
                yield http

    def _fail_if_ended(self) -> None:
        code = self._process.poll() if self._process else None
        if code is not None:
            raise EngineError(
                f"restate-server ended with code {code} before it was ready; "
                f"the end of {self.config.log_path}:\n{self.log_tail()}"
            )

    async def _ended(self, limit: timedelta) -> bool:
        process = self._process
        give_up = time.monotonic() + limit.total_seconds()
        while process is not None and process.poll() is None:
            if time.monotonic() > give_up:
                return False
            await asyncio.sleep(_POLL)
        self._process = None
        return True


async def _healthy(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False

"""restate-server as a child process."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from perdure._runtime.disks import disk_problem, write_failure
from perdure._runtime.http import http_client, tls_context
from perdure._runtime.ports import connectable, ensure_free
from perdure.engine.config import LOOPBACK, EngineConfig
from perdure.errors import EngineError
from perdure.security.private_files import PRIVATE_UMASK, make_private_folder, open_private

_POLL = 0.02
_TAIL_LINES = 12

logger = logging.getLogger(__name__)


class EngineProcess:
    """restate-server process on this machine.

    It runs in a separate session: Ctrl-C does not reach it, so services can drain while it runs. It can be started in
    one event loop and stopped in another.

    Args:
        binary: The native binary, see `perdure.engine.locate`.
        config: The settings.
        on_spawn: A callback that receives the process ID at each start, before the process is ready.
    """

    def __init__(self, binary: Path, config: EngineConfig, on_spawn: Callable[[int], None] | None = None) -> None:
        self.binary = binary.absolute()  # the server runs in its data folder
        self.config = config
        self._on_spawn = on_spawn
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process ID, or None if not started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit code of a process that ended by itself, negative for a signal; None if it runs or was stopped here."""
        return None if self._process is None else self._process.poll()

    @property
    def ingress_url(self) -> str:
        """The URL of the ingress."""
        return self.config.ingress_url

    @property
    def admin_url(self) -> str:
        """The URL of the admin API."""
        return self.config.admin_url

    async def start(self, timeout: timedelta = timedelta(seconds=30)) -> None:
        """Start the process and wait until ingress and admin API respond.

        Args:
            timeout: The time limit.

        Raises:
            ConfigurationError: A port is taken.
            EngineError: The process ended or was not ready in time, and was killed. The message contains the end of its
                log.
        """
        if self.running:
            raise EngineError("restate-server is already running; stop it before starting it again")
        for setting, port in self.config.ports().items():
            ensure_free(LOOPBACK, port, setting)
        pid = self._spawn()
        try:
            if self._on_spawn is not None:
                self._on_spawn(pid)
            await self._wait_until_ready(timeout)
        except BaseException:
            await self.kill()
            raise

    async def stop(self, timeout: timedelta = timedelta(seconds=15)) -> None:
        """Stop the process with SIGTERM, and kill it after the timeout."""
        if self._process is None:
            return
        self._process.terminate()
        if not await self._wait_for_exit(timeout):
            logger.warning("restate-server (pid %d) did not stop within %s: killing it", self._process.pid, timeout)
            await self.kill()

    async def kill(self) -> None:
        """Kill the process with SIGKILL, as in a crash."""
        if self._process is None:
            return
        self._process.kill()
        await self._wait_for_exit(timedelta(seconds=10))

    async def __aenter__(self) -> Self:
        """Start with the default timeout."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop with the default timeout."""
        await self.stop()

    async def answers(self) -> bool:
        """Return whether the ingress and the admin API answer."""
        for url, path in self._probes():
            async with self._probe(path) as http:
                if not await _healthy(http, url):
                    return False
        return True

    def _log_excerpt(self) -> str:
        """Return the end of an error message: a problem of the disk, and the end of the log."""
        problem = disk_problem(self.config.data_dir)
        return f"{f'; {problem}' if problem else ''}; the end of {self.config.log_path}:\n{self.log_tail()}"

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the last lines of the output since the last start."""
        try:
            with self.config.log_path.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 32_768))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _spawn(self) -> int:
        # RESTATE_ variables of this process are for another server and would override the settings.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RESTATE_")}
        try:
            # Data and log contain requests and results, unencrypted by default.
            make_private_folder(self.config.data_dir)
            if self.config.temporary_folder.exists():
                shutil.rmtree(self.config.temporary_folder)
            make_private_folder(self.config.temporary_folder)
            if self.config.sockets:  # the folder must exist before the sockets are opened
                make_private_folder(self.config.ingress_socket.parent)
            self.config.log_path.parent.mkdir(parents=True, exist_ok=True)
            log = open(self.config.log_path, "ab", opener=open_private)  # noqa: SIM115 - closed below
        except OSError as error:
            reason = write_failure(error, self.config.log_path)
            raise EngineError(f"restate-server cannot write to {self.config.log_path}: {reason}") from error
        try:
            with log:
                self._log_start = log.tell()
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
            raise EngineError(f"restate-server at {self.binary} cannot be run: {error.strerror}") from error
        return self._process.pid

    async def _wait_until_ready(self, limit: timedelta) -> None:
        deadline = time.monotonic() + limit.total_seconds()
        for url, path in self._probes():
            async with self._probe(path) as http:
                while not await _healthy(http, url):
                    self._fail_if_ended()
                    if time.monotonic() > deadline:
                        place = str(path) if self.config.sockets else url
                        raise EngineError(
                            f"restate-server was not ready within {limit.total_seconds():g} s: "
                            f"no response from {place}{self._log_excerpt()}"
                        )
                    await asyncio.sleep(_POLL)
        self._fail_if_ended()

    def _probes(self) -> tuple[tuple[str, Path], ...]:
        """Return the URLs of the health checks with their sockets."""
        return (
            (f"{self.admin_url}/health", self.config.admin_socket),
            (f"{self.ingress_url}/restate/health", self.config.ingress_socket),
        )

    @asynccontextmanager
    async def _probe(self, path: Path) -> AsyncIterator[httpx.AsyncClient]:
        """Open a client for a port or socket."""
        with connectable(path) if self.config.sockets else nullcontext() as uds:
            transport = httpx.AsyncHTTPTransport(uds=uds, verify=tls_context())
            async with http_client(self.admin_url, timeout=2, transport=transport) as http:
                yield http

    def _fail_if_ended(self) -> None:
        code = self._process.poll() if self._process else None
        if code is not None:
            raise EngineError(f"restate-server exited with code {code} during its start{self._log_excerpt()}")

    async def _wait_for_exit(self, limit: timedelta) -> bool:
        process = self._process
        deadline = time.monotonic() + limit.total_seconds()
        while process is not None and process.poll() is None:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL)
        self._process = None
        return True


async def _healthy(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False

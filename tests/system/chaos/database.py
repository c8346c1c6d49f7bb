"""A PostgreSQL server that a chaos run restarts and disconnects."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, Self

import asyncpg  # type: ignore[import-untyped] # it has no annotations

from perdure._runtime.ports import free_ports
from perdure.dev.processes import wait_for_exit
from perdure.engine.watchdog import Watchdog
from perdure.errors import PerdureError
from services.runtime.settings import DATABASE_OWNERS
from tests.support import eventually

_USER: Final = "perdure"
_READY_WITHIN: Final = 60.0
_STOP_WITHIN: Final = timedelta(seconds=30)


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's binaries, which Debian installs outside of the PATH; None without them."""
    folders = os.pathsep.join([os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))])
    found = shutil.which("initdb", path=folders)
    return Path(found).parent if found else None


class Postgres:
    """A server with a database and a user per service, on a port of this machine. Open it with `on`.

    Args:
        folder: Folder of the server, empty.
        binaries: See `find_postgres`.
    """

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder = folder
        self._binaries = binaries
        # PostgreSQL refuses to run as root.
        users = (user.pw_name for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
        self._account = next(users) if os.geteuid() == 0 else None
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog = Watchdog(ending=signal.SIGINT).start()

    @classmethod
    @asynccontextmanager
    async def on(cls, folder: Path, binaries: Path) -> AsyncIterator[Self]:
        """Run a server inside the context.

        Args:
            folder: See the class.
            binaries: See the class.

        Raises:
            PerdureError: The server cannot be started.
        """
        server = cls(folder, binaries)
        try:
            await server._create()
            await server.start()
            for service in DATABASE_OWNERS:
                await server._execute(f"CREATE ROLE {service} LOGIN")
                await server._execute(f"CREATE DATABASE {service} OWNER {service}")
            yield server
        finally:
            await server.stop(signal.SIGINT)
            server._watchdog.dismiss()

    @staticmethod
    def urls(port: int) -> dict[str, str]:
        """Return the URL of each service's database at a port: that of the server, or of a proxy."""
        return {service: f"postgresql://{service}@127.0.0.1:{port}/{service}" for service in DATABASE_OWNERS}

    async def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            PerdureError: It does not answer in time.
        """
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        settings = [f"-c{name}={value}" for name, value in {**options, "max_connections": 200}.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - starts in milliseconds
                [self._binaries / "postgres", "-D", self._data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                user=self._account,
                start_new_session=True,
            )
        self._watchdog.watch(self._process.pid)
        await eventually(self._answers, what=f"answer of PostgreSQL; see {self._folder}/log", within=_READY_WITHIN)

    async def stop(self, number: signal.Signals) -> None:
        """Stop the server.

        Args:
            number: SIGINT ends the connections and writes a checkpoint; SIGQUIT stops at once, as a crash does.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(number)
        if not await wait_for_exit(lambda: process.poll() is not None, _STOP_WITHIN):
            process.kill()

    async def disconnect(self) -> None:
        """End all connections of the services."""
        await self._execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    async def _create(self) -> None:
        if self._account is not None:
            shutil.chown(self._folder, self._account)
        command = [self._binaries / "initdb", "-D", self._data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C"]
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, "-N"],
            check=False,
            capture_output=True,
            text=True,
            cwd=self._folder,
            user=self._account,
        )
        if done.returncode:
            raise PerdureError(f"initdb failed: {done.stderr.strip()}")

    async def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise PerdureError(f"PostgreSQL ended during its start; see {self._folder}/log")
        try:
            await self._execute("SELECT 1")
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        return True

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=self.port, user=_USER, database="postgres", timeout=5, ssl=False
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close(timeout=5)

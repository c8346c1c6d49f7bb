"""A temporary PostgreSQL server, if one is installed."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped] # it has no annotations
import pytest

from perdure.engine.watchdog import Watchdog
from perdure.errors import PerdureError
from services.runtime.settings import DATABASE_OWNERS
from tests.support import until

_USER: Final = "perdure"
_READY_WITHIN: Final = 60
_STOP_WITHIN: Final = 30


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's binaries, which Debian installs outside of the PATH; None without them."""
    folders = os.pathsep.join([os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))])
    found = shutil.which("initdb", path=folders)
    return Path(found).parent if found else None


class Postgres:
    """A temporary PostgreSQL server without durability, which can be stopped and started. Open it with `running`.

    Args:
        folder: Folder of its data and its Unix socket, empty.
        binaries: See `find_postgres`.
        port: Port of the loopback interface; None for the socket only.
        temporary: A folder that is removed if this process dies.
    """

    def __init__(self, folder: Path, binaries: Path, port: int | None = None, temporary: Path | None = None) -> None:
        self.port = port
        self._folder = folder
        self._binaries = binaries
        # PostgreSQL refuses to run as root.
        users = (user.pw_name for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
        self._account = next(users) if os.geteuid() == 0 else None
        self._server: subprocess.Popen[bytes] | None = None
        self._watchdog = Watchdog(temporary, ending=signal.SIGINT).start()

    @classmethod
    @contextmanager
    def running(
        cls, folder: Path, binaries: Path, port: int | None = None, temporary: Path | None = None
    ) -> Iterator[Postgres]:
        """Run a server inside the context. See the class for the arguments.

        Raises:
            PerdureError: The server cannot be started.
        """
        server = cls(folder, binaries, port, temporary)
        try:
            server._create()
            server.start()
            yield server
        finally:
            server.stop()
            server._watchdog.dismiss()

    @property
    def pid(self) -> int:
        """Process ID of the server."""
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        """Start the server unless it runs, and wait until it answers."""
        if self._server is not None:
            return
        options = {
            "listen_addresses": "127.0.0.1" if self.port else "",
            "port": self.port or 5432,
            "unix_socket_directories": self._folder,
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": 200,
        }
        settings = [f"-c{name}={value}" for name, value in options.items()]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                user=self._account,
                start_new_session=True,
            )
        self._watchdog.watch(self._server.pid)
        until(self._answers, f"answer of PostgreSQL; see {self._folder}/log", within=_READY_WITHIN)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server if it runs.

        Args:
            number: SIGINT ends the connections and writes a checkpoint; SIGQUIT stops at once, as a crash does.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        server.send_signal(number)
        try:
            server.wait(timeout=_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

    def disconnect(self) -> None:
        """End all connections of clients."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        if self.port is not None:
            return f"postgresql://{_USER}@127.0.0.1:{self.port}/{name}"
        return f"postgresql://{_USER}@/{name}?host={self._folder}"

    def create_service_databases(self) -> None:
        """Create a database with a user of its own for each data-plane service, as in containers."""
        for name in DATABASE_OWNERS:
            self.execute(
                f"CREATE ROLE {name} LOGIN",
                f"CREATE DATABASE {name} OWNER {name}",
                f"REVOKE ALL ON DATABASE {name} FROM PUBLIC",
            )

    def service_urls(self, port: int | None = None) -> Mapping[str, str]:
        """Return the URL of each service's database.

        Args:
            port: Port of a proxy; that of the server by default.
        """
        return {name: f"postgresql://{name}@127.0.0.1:{port or self.port}/{name}" for name in DATABASE_OWNERS}

    def create(self, *, template: str = "template1") -> str:
        """Create a database and return its name."""
        name = f"t{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Execute statements as the administrator."""
        asyncio.run(self._execute(database, statements))

    async def _execute(self, database: str, statements: tuple[str, ...]) -> None:
        connection = await asyncpg.connect(
            host=str(self._folder), port=self.port or 5432, user=_USER, database=database, timeout=5
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close(timeout=5)

    def _create(self) -> None:
        if self._account is not None:
            shutil.chown(self._folder, self._account)
        command = [self._binaries / "initdb", "-D", self._folder / "data", "-U", _USER, "-A", "trust", "-E", "UTF8"]
        done = subprocess.run(
            [*command, "--locale=C", "-N"],
            check=False,
            capture_output=True,
            text=True,
            cwd=self._folder,
            user=self._account,
        )
        if done.returncode:
            raise PerdureError(f"initdb failed: {done.stderr.strip()}")

    def _answers(self) -> bool:
        if self._server is not None and self._server.poll() is not None:
            raise PerdureError(f"PostgreSQL ended during its start: {(self._folder / 'log').read_text()[-2000:]}")
        try:
            self.execute("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            return False
        return True


@contextmanager
def running_postgres(port: int | None = None) -> Iterator[Postgres]:
    """Run a server in a temporary folder, or skip the test if PostgreSQL is not installed."""
    if (binaries := find_postgres()) is None:
        pytest.skip("PostgreSQL is not installed: run make tools as root")
    # Unix socket paths are limited to 107 characters, and other users must reach the folder.
    with tempfile.TemporaryDirectory(prefix="perdure-pg-", dir="/tmp") as parent:
        Path(parent).chmod(0o711)
        folder = Path(parent) / "server"
        folder.mkdir()
        with Postgres.running(folder, binaries, port, Path(parent)) as server:
            yield server

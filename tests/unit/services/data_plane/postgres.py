"""A temporary PostgreSQL server, if one is installed."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped] # it has no annotations
import pytest

from perdure.engine.watchdog import Watchdog
from tests.support import until


class Postgres:
    """A temporary PostgreSQL server without durability, which can be stopped and started.

    Args:
        folder: Folder of its data and its Unix socket.
        binary: The server.
        account: Account to run it; None for that of this process.
        watchdog: Stops it after the death of this process.
        port: Port of the loopback interface; None for the socket only.
    """

    def __init__(
        self, folder: Path, binary: str, account: str | None, watchdog: Watchdog, port: int | None = None
    ) -> None:
        self._folder = folder
        self._binary = binary
        self._account = account
        self._watchdog = watchdog
        self.port = port
        self._server: subprocess.Popen[bytes] | None = None

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
            "port": str(self.port or 5432),
            "unix_socket_directories": str(self._folder),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "100",
        }
        with (self._folder / "log").open("ab") as output:
            self._server = subprocess.Popen(
                [
                    self._binary,
                    "-D",
                    str(self._folder / "data"),
                    *(f"-c{key}={value}" for key, value in options.items()),
                ],
                stdout=output,
                stderr=output,
                cwd=self._folder,
                user=self._account,
            )
        self._watchdog.watch(self._server.pid)
        _wait_until_ready(self, self._server, self._folder / "log")

    def stop(self) -> None:
        """Stop the server if it runs: a fast shutdown, which closes open connections."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGINT)
        try:
            self._server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._server = None

    def url(self, name: str) -> str:
        if self.port is not None:
            return f"postgresql://perdure@127.0.0.1:{self.port}/{name}"
        return f"postgresql://perdure@/{name}?host={self._folder}"

    def execute(self, *statements: str, database: str = "postgres") -> None:
        asyncio.run(self._execute(database, statements))

    async def _execute(self, database: str, statements: tuple[str, ...]) -> None:
        connection = await asyncpg.connect(
            host=str(self._folder), port=self.port or 5432, user="perdure", database=database
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    def create(self, *, template: str = "template1") -> str:
        """Create a database and return its name."""
        name = f"t{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name


@contextmanager
def running_postgres(port: int | None = None) -> Iterator[Postgres]:
    # Debian installs the binaries outside the PATH, in a folder per version.
    folders = os.pathsep.join([os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))])
    binaries = {name: shutil.which(name, path=folders) for name in ("initdb", "postgres")}
    if None in binaries.values():
        pytest.skip("PostgreSQL is not installed: run make tools as root")
    # Unix socket paths are limited to 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="perdure-pg-", dir="/tmp"))
    account: str | None = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        account = next(user.pw_name for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
        shutil.chown(folder, account)
    watchdog = Watchdog(folder, ending=signal.SIGINT).start()
    postgres = Postgres(folder, str(binaries["postgres"]), account, watchdog, port)
    try:
        subprocess.run(
            [
                str(binaries["initdb"]),
                "-D",
                str(folder / "data"),
                "-U",
                "perdure",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            user=account,
        )
        postgres.start()
        yield postgres
    finally:
        postgres.stop()
        watchdog.dismiss()
        shutil.rmtree(folder)


def _wait_until_ready(postgres: Postgres, server: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        assert server.poll() is None, "PostgreSQL ended"
        try:
            postgres.execute("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    try:
        until(answers, "PostgreSQL that answers", within=30)
    except AssertionError as error:
        error.add_note(log.read_text())
        raise

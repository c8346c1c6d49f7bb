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
    """A temporary PostgreSQL server on a Unix socket, without durability."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def url(self, name: str) -> str:
        return f"postgresql://perdure@/{name}?host={self._folder}"

    def execute(self, *statements: str, database: str = "postgres") -> None:
        asyncio.run(self._execute(database, statements))

    async def _execute(self, database: str, statements: tuple[str, ...]) -> None:
        connection = await asyncpg.connect(host=str(self._folder), user="perdure", database=database)
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
def running_postgres() -> Iterator[Postgres]:
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
    server: subprocess.Popen[bytes] | None = None
    watchdog = Watchdog(folder, ending=signal.SIGINT).start()
    log = folder / "log"
    try:
        data = folder / "data"
        subprocess.run(
            [
                str(binaries["initdb"]),
                "-D",
                str(data),
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
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(folder),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "100",
        }
        with log.open("wb") as output:
            server = subprocess.Popen(
                [str(binaries["postgres"]), "-D", str(data), *(f"-c{key}={value}" for key, value in options.items())],
                stdout=output,
                stderr=output,
                cwd=folder,
                user=account,
            )
        watchdog.watch(server.pid)
        postgres = Postgres(folder)
        _wait_until_ready(postgres, server, log)
        yield postgres
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # a fast shutdown, which closes open connections
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
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

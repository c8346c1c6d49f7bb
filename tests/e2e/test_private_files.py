"""Permissions of the files of a running platform."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.e2e.console_platform import ADMINISTRATOR, ConsolePlatform

NO_MODE = stat.S_ISLNK
"""Symbolic links have no permissions."""


def open_to_others(folder: Path) -> list[str]:
    """Return the paths that other users may access, the folder included."""
    found = []
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_IMODE(mode) & 0o077 and not NO_MODE(mode):
            found.append(f"{stat.S_IMODE(mode):04o} {path.relative_to(folder)}")
    return found


def test_platform_files_are_private(console: ConsolePlatform):
    console.trip("madeira", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/madeira").status_code == 200, "approval")
    console.until(lambda: console.api("GET", "/api/approvals").json()["total"] >= 1, "approval in the inbox")
    home = console.launched.home
    assert console.run("password", "--name", "unknown@example.com", "--password-stdin").returncode == 1
    written = {path.relative_to(home).as_posix() for path in home.rglob("*")}
    assert {
        "data/flights.db",
        "data/payments.db-wal",
        "data/console.db",
        "keys/approval-links.pem",
        "logs/console.log",
        "logs/restate-server.log",
        "run/platform.lock",
        "data/restate",
    } <= written
    assert any((path.startswith("data/restate/") and path.endswith(".sst")) or "/db/" in path for path in written)
    assert open_to_others(home) == []
    assert ADMINISTRATOR.encode() in b"".join(path.read_bytes() for path in (home / "data").glob("console.db*")), (
        "the checked files are not those in use"
    )

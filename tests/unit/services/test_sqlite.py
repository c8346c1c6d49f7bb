from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from perdure.errors import ConfigurationError
from services.sqlite import make_file, sqlite_url

WAIT = timedelta(seconds=5)


def _mode(file: Path) -> str:
    with closing(sqlite3.connect(file)) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


async def test_concurrent_processes_create_one_file(tmp_path: Path) -> None:
    # SQLite locks belong to a connection, so connections of one process behave like those of several. Without retries,
    # about one file in seven fails.
    for number in range(60):
        file = tmp_path / "new" / f"{number}.db"
        await asyncio.gather(*(make_file(file, wait=WAIT) for _ in range(4)))
        assert _mode(file) == "wal"


async def test_existing_file_keeps_content(tmp_path: Path) -> None:
    file = tmp_path / "old.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE kept (x)")
    await make_file(file, wait=WAIT)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("kept",)]
    assert _mode(file) == "wal"


async def test_new_file_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = tmp_path / "new" / "secret.db"
        await make_file(file, wait=WAIT)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE t (x)")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (file.parent, *file.parent.iterdir())}
    finally:
        os.umask(before)
    assert modes == {"new": 0o700, "secret.db": 0o600, "secret.db-wal": 0o600, "secret.db-shm": 0o600}


async def test_error_names_obstacle(tmp_path: Path) -> None:
    text, folder, locked = tmp_path / "text.db", tmp_path / "folder.db", tmp_path / "locked.db"
    text.write_text("no database, and longer than the hundred bytes of the header of one " * 3)
    folder.mkdir()
    with pytest.raises(ConfigurationError, match=r"text\.db cannot be created: file is not a database"):
        await make_file(text, wait=WAIT)
    with pytest.raises(ConfigurationError, match=r"folder\.db cannot be created: unable to open"):
        await make_file(folder, wait=WAIT)
    with pytest.raises(ConfigurationError, match=r"below/new\.db cannot be created: Not a directory"):
        await make_file(text / "below" / "new.db", wait=WAIT)
    with closing(sqlite3.connect(locked, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE x (y)")
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            ConfigurationError, match=r"locked\.db stayed locked for 0\.05 s: stop the process that uses it"
        ):
            await make_file(locked, wait=timedelta(milliseconds=50))


FOLDERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0") | st.sampled_from("?#%&@:;+' "))


@given(FOLDERS)
def test_url_names_file_in_any_folder(name: str) -> None:
    file = Path("/data").joinpath(name, "x.db").resolve()
    assert make_url(sqlite_url(file)).database == str(file)

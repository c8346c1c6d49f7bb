"""Rotation of logs that processes append to."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.dev import log_rotation
from perdure.dev.log_rotation import KEPT, rotate, rotate_regularly
from tests.support import eventually

LIMIT = 100


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_small_log_stays(tmp_path):
    log = tmp_path / "flights.log"
    log.write_bytes(b"x" * (LIMIT - 1))
    assert not rotate(log, LIMIT)
    assert files(tmp_path) == {"flights.log": b"x" * (LIMIT - 1)}


@given(st.lists(st.binary(min_size=1, max_size=2 * LIMIT), max_size=12))
def test_rotation_keeps_newest_content_within_limits(tmp_path_factory, writes):
    folder = tmp_path_factory.mktemp("logs")
    path = folder / "flights.log"
    with path.open("ab", buffering=0) as log:  # as a child process has it open
        for written in writes:
            log.write(written)
            rotate(path, LIMIT)
            assert path.stat().st_size < LIMIT
    found = files(folder)
    parts = [found.pop(f"flights.log.{number}", b"") for number in range(KEPT, 0, -1)] + [found.pop("flights.log")]
    assert not found
    assert all(len(part) < 3 * LIMIT for part in parts)
    assert b"".join(writes).endswith(b"".join(parts))


def test_rotated_log_is_private(tmp_path):
    log = tmp_path / "flights.log"
    log.write_bytes(b"x" * LIMIT)
    rotate(log, LIMIT)
    assert (tmp_path / "flights.log.1").stat().st_mode & 0o777 == 0o600


def test_failed_copy_leaves_log_unchanged(tmp_path, monkeypatch):
    log = tmp_path / "flights.log"
    log.write_bytes(b"x" * LIMIT)

    def full(source: object, target: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(log_rotation.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        rotate(log, LIMIT)
    assert files(tmp_path) == {"flights.log": b"x" * LIMIT}


async def test_all_logs_of_folder_are_rotated(tmp_path):
    for name in ("flights.log", "engine.log"):
        (tmp_path / name).write_bytes(b"x" * LIMIT)
    task = asyncio.create_task(rotate_regularly(tmp_path, interval=timedelta(milliseconds=1), max_bytes=LIMIT))
    await eventually(lambda: len(files(tmp_path)) == 4, what="rotated logs")
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert sorted(files(tmp_path)) == ["engine.log", "engine.log.1", "flights.log", "flights.log.1"]

"""Log levels from a file."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from perdure.errors import ConfigurationError
from perdure.observability.log_levels import LEVELS_FILE, LevelFile, parse_levels, watch_levels
from tests.support import eventually


def level(name: str) -> int:
    return logging.getLogger(name).level


def test_parse_levels():
    text = "# why\nwarning\n\n perdure.saga = debug # for now\nx=ERROR\n"
    assert parse_levels(text) == {"": logging.WARNING, "perdure.saga": logging.DEBUG, "x": logging.ERROR}
    with pytest.raises(ConfigurationError, match="level in line 2: 'loud' is unknown; use one of"):
        parse_levels("info\nx = loud")


def test_removed_line_restores_level(tmp_path: Path):
    path = tmp_path / "levels"
    file = LevelFile(path)
    logging.getLogger("levels.one").setLevel(logging.ERROR)
    assert not file.apply()
    path.write_text("levels.one = debug\nlevels.two = info\n")
    assert file.apply()
    assert not file.apply()
    assert (level("levels.one"), level("levels.two")) == (logging.DEBUG, logging.INFO)
    path.write_text("levels.two = nonsense\n")
    assert not file.apply()
    assert (level("levels.one"), level("levels.two")) == (logging.DEBUG, logging.INFO)
    path.write_text("levels.two = warning\n")
    assert file.apply()
    assert (level("levels.one"), level("levels.two")) == (logging.ERROR, logging.WARNING)
    path.unlink()
    assert file.apply()
    assert (level("levels.one"), level("levels.two")) == (logging.ERROR, logging.NOTSET)


def test_unreadable_file_is_logged_once(tmp_path: Path, caplog):
    path = tmp_path / "levels"
    file = LevelFile(path)
    for _ in range(2):
        path.mkdir()
        assert [file.apply() for _ in range(3)] == [False] * 3
        path.rmdir()
        assert not file.apply()
    assert [record.getMessage().partition(" file=")[0] for record in caplog.records] == ["cannot read log levels"] * 2


async def test_running_process_applies_file_changes(tmp_path: Path):
    path = tmp_path / "levels"
    assert watch_levels({}) is None
    stop = watch_levels({LEVELS_FILE: str(path)}, interval=timedelta(milliseconds=10))
    assert stop is not None
    try:
        for name, number in (("debug", logging.DEBUG), ("error", logging.ERROR)):
            path.write_text(f"levels.three = {name}\n")

            async def applied(number: int = number) -> bool:
                return level("levels.three") == number

            await eventually(applied, what=f"level {name}")
    finally:
        stop.set()

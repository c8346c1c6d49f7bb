"""Levels of logs follow a file while the process runs."""

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


def test_a_file_names_levels_for_all_and_for_some():
    text = "# why\nwarning\n\n perdure.saga = debug # for now\nx=ERROR\n"
    assert parse_levels(text) == {"": logging.WARNING, "perdure.saga": logging.DEBUG, "x": logging.ERROR}
    with pytest.raises(ConfigurationError, match="level in line 2: 'loud' is unknown, take one of"):
        parse_levels("info\nx = loud")


def test_what_a_file_no_longer_says_is_as_before(tmp_path: Path):
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


def test_a_file_that_cannot_be_read_is_said_once_and_not_at_each_look(tmp_path: Path, caplog):
    path = tmp_path / "levels"
    file = LevelFile(path)
    for _ in range(2):
        path.mkdir()
        assert [file.apply() for _ in range(3)] == [False] * 3
        path.rmdir()
        assert not file.apply()
    assert [record.getMessage().partition(" file=")[0] for record in caplog.records] == ["log levels can't be read"] * 2


async def test_a_running_process_follows_its_file(tmp_path: Path):
    path = tmp_path / "levels"
    assert watch_levels({}) is None
    stop = watch_levels({LEVELS_FILE: str(path)}, look=timedelta(milliseconds=10))
    assert stop is not None
    try:
        for said, number in (("debug", logging.DEBUG), ("error", logging.ERROR)):
            path.write_text(f"levels.three = {said}\n")

            async def follows(number: int = number) -> bool:
                return level("levels.three") == number

            await eventually(follows, what=f"level {said}")
    finally:
        stop.set()

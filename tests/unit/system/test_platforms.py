from __future__ import annotations

import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from perdure.dev.interrupts import Interrupts
from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.system.scenarios.platforms import run_isolated

Play = Callable[[Topology, LocatedEngine], Coroutine[Any, Any, int]]


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A binary that only prints its version, and a folder for temporary files."""
    binary = tmp_path / "restate-server"
    binary.write_text("#!/bin/sh\necho restate-server 1.7.12\n")
    binary.chmod(0o755)
    monkeypatch.setenv("RESTATE_SERVER_BIN", str(binary))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def ending_with(code: int) -> Play:
    async def play(topology: Topology, engine: LocatedEngine) -> int:
        assert topology.home.is_dir()
        assert engine.version == "1.7.12"
        (topology.home / "log").touch()
        return code

    return play


@pytest.mark.parametrize(("code", "kept"), [(0, []), (1, ["log"])])
def test_keep_data_only_after_failure(tmp_path, capsys, code, kept):
    assert run_isolated("t", PlatformSettings(), Terminal(), ending_with(code)) == code
    assert [file.name for file in (tmp_path / "tmp").rglob("log")] == kept
    assert ("data and logs are kept in" in capsys.readouterr().out) is bool(kept)


def test_crashed_test_keeps_data(tmp_path, capsys):
    async def crash(topology: Topology, engine: LocatedEngine) -> int:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_isolated("t", PlatformSettings(), Terminal(), crash)
    (kept,) = (tmp_path / "tmp").iterdir()
    assert f"data and logs are kept in {kept}" in capsys.readouterr().out


def test_stopped_test_removes_data(tmp_path):
    async def stopped(topology: Topology, engine: LocatedEngine) -> int:
        interrupts = Interrupts()
        with interrupts.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            await interrupts.run_until_stopped(interrupts.hurry.wait())
        return 0

    assert run_isolated("t", PlatformSettings(), Terminal(), stopped) == 128 + signal.SIGTERM
    assert list((tmp_path / "tmp").iterdir()) == []

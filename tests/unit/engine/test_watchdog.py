"""The watchdog ends processes when its owner is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.engine.watchdog import Watchdog
from perdure.errors import EngineError
from tests.support import eventually


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until it is killed."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "file").touch()
    return tmp_path / "data"


def lose_owner(watchdog: Watchdog) -> None:
    """Close the pipe, as the kernel does when the owner is gone."""
    process = watchdog._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=20)
    watchdog._process = None


async def test_end_process_and_remove_folder_with_owner(sleeper, folder):
    watchdog = Watchdog(folder).start()
    watchdog.watch(sleeper.pid)
    assert sleeper.poll() is None
    lose_owner(watchdog)

    async def ended() -> bool:
        return sleeper.poll() is not None

    await eventually(ended, what="the end of the process")
    assert not folder.exists()


def test_end_process_by_sigterm():
    program = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    watchdog = Watchdog(ending=signal.SIGTERM).start()
    watchdog.watch(process.pid)
    lose_owner(watchdog)
    process.communicate(timeout=20)
    assert process.returncode == 7


def test_dismissed_watchdog_changes_nothing(sleeper, folder):
    watchdog = Watchdog(folder).start()
    watchdog.watch(sleeper.pid)
    watchdog.dismiss()
    assert sleeper.poll() is None
    assert (folder / "deep" / "file").exists()
    watchdog.dismiss()  # has no effect


def test_ignore_ended_process(sleeper, folder):
    ended = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    ended.wait()
    watchdog = Watchdog(folder).start()
    watchdog.watch(ended.pid)
    watchdog.watch(sleeper.pid)
    lose_owner(watchdog)
    assert sleeper.wait(timeout=20) != 0


def test_no_folder_is_removed_by_default(sleeper, folder, monkeypatch):
    monkeypatch.chdir(folder)
    watchdog = Watchdog().start()
    watchdog.watch(sleeper.pid)
    lose_owner(watchdog)
    assert sleeper.wait(timeout=20) != 0
    assert (folder / "deep" / "file").exists()


def test_reject_watching_without_watchdog(sleeper):
    with pytest.raises(EngineError, match="the watchdog of restate-server has ended"):
        Watchdog().watch(sleeper.pid)
    watchdog = Watchdog().start()
    assert watchdog._process is not None
    os.kill(watchdog._process.pid, 9)
    watchdog._process.wait()
    with pytest.raises(EngineError, match="the server would outlive this process"):
        watchdog.watch(sleeper.pid)
    watchdog.dismiss()

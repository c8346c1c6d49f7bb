from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from perdure.dev import pidfiles
from perdure.dev.pidfiles import PidFile, RunningProcess, folder_lock, leftovers, started_at, stop
from perdure.errors import ConfigurationError
from tests.support import PATIENCE, until

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    spawned: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", f"{program}; print('up', flush=True); import time; time.sleep(60)"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        spawned.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    for process in spawned:
        process.kill()
        process.communicate()


def test_distinguish_processes_with_reused_id(spawn, tmp_path):
    process, file = spawn("pass"), PidFile(tmp_path / "flights.pid")
    file.write(process.pid)
    assert file.running() == RunningProcess(process.pid, started_at(process.pid) or "")
    (tmp_path / "flights.started").write_text("another time\n")
    assert file.running() is None


def test_processes_differ_by_start_or_id(spawn):
    first = spawn("pass")
    assert started_at(first.pid) == started_at(first.pid)
    assert started_at(first.pid) != started_at(os.getpid())


def test_zombie_counts_as_ended(spawn):
    process = spawn("pass")
    process.kill()
    # Without a wait, the killed process stays as a zombie.
    until(lambda: started_at(process.pid) is None, "end of the process")
    assert started_at(2**22 + 1) is None


def test_ps_agrees_with_proc(spawn, monkeypatch, tmp_path):
    process = spawn("pass")
    # Imitates the ps of systems without /proc, which may be missing on the test machine.
    ps = tmp_path / "ps"
    ps.write_text(f'#!/bin/sh\n[ "$4" = {process.pid} ] && echo "Ss   Tue Nov 24 09:27:24 2026"\nexit 0\n')
    ps.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(pidfiles, "_PROC", tmp_path / "proc")
    assert started_at(process.pid) == "Tue Nov 24 09:27:24 2026"
    assert started_at(process.pid + 1) is None


@pytest.mark.parametrize("content", ["", "none\n", "4000000\n"])
def test_remove_stale_or_invalid_pid_file(tmp_path, content):
    (tmp_path / "flights.pid").write_text(content)
    (tmp_path / "flights.started").write_text("some time\n")
    assert leftovers(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_do_not_stop_foreign_process_with_old_id(spawn, tmp_path):
    stranger = spawn("pass")
    (tmp_path / "flights.pid").write_text(f"{stranger.pid}\n")
    (tmp_path / "flights.started").write_text("long ago\n")
    assert leftovers(tmp_path) == {}
    # A stop by an earlier description of the process does not reach the new one.
    assert stop(RunningProcess(stranger.pid, "long ago"), timedelta(seconds=1))
    assert stranger.poll() is None


def test_stop_processes_of_earlier_run(spawn, tmp_path):
    left = spawn("pass")
    PidFile(tmp_path / "hotels.pid").write(left.pid)
    found = leftovers(tmp_path)
    assert list(found) == ["hotels"]
    assert stop(found["hotels"], timedelta(seconds=10))
    assert left.wait(PATIENCE) == -signal.SIGTERM
    assert leftovers(tmp_path) == {}


def test_kill_processes_of_earlier_run_after_timeout(spawn, tmp_path):
    left = spawn("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    PidFile(tmp_path / "hotels.pid").write(left.pid)
    assert not stop(leftovers(tmp_path)["hotels"], timedelta(seconds=0.3))
    assert left.wait(PATIENCE) == -signal.SIGKILL


def hold(folder: Path) -> str:
    return (
        "from pathlib import Path; from perdure.dev.pidfiles import folder_lock; "
        f"lock = folder_lock(Path({str(folder)!r}), 'the other run'); lock.__enter__()"
    )


def test_folder_lock_ends_with_its_process(spawn, tmp_path):
    holder = spawn(hold(tmp_path / "run"))
    with (
        pytest.raises(ConfigurationError, match=rf"^the other run \(process {holder.pid}\) already runs in {tmp_path}"),
        folder_lock(tmp_path / "run", "this run"),
    ):
        pass
    holder.kill()
    holder.wait(PATIENCE)
    with folder_lock(tmp_path / "run", "this run"):
        pass
    with folder_lock(tmp_path / "run", "this run"):
        pass


def test_report_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigurationError, match=r"is not usable .* set PERDURE_LOCAL_DIR"),
        folder_lock(tmp_path / "file" / "run", "this run"),
    ):
        pass


def test_pid_file_is_written_atomically(tmp_path):
    file, done = PidFile(tmp_path / "flights.pid"), threading.Event()

    def write() -> None:
        for _ in range(300):
            file.write(os.getpid())
            file.remove()
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        with suppress(FileNotFoundError):
            seen.add(file.path.read_text())
    writer.join()
    assert seen <= {f"{os.getpid()}\n"}
    assert [path.name for path in tmp_path.iterdir()] == []

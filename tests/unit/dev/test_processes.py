from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from perdure.dev.pidfiles import PidFile, started_at
from perdure.dev.processes import ChildProcess, ProcessError, describe_exit
from perdure.dev.supervisor import run_together
from tests.support import eventually

T = TypeVar("T")

READY = "from pathlib import Path; Path({ready!r}).touch()"
WAIT = "import time; time.sleep(60)"


class Children:
    """Creates child processes in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def child(self, program: str, name: str = "child", **options: object) -> ChildProcess:
        ready = self.folder / f"{name}.ready"

        async def is_ready() -> bool:
            return ready.exists()

        return ChildProcess(
            name,
            [sys.executable, "-c", program.replace("READY", READY.format(ready=str(ready))).replace("WAIT", WAIT)],
            ready=is_ready,
            environment=lambda: dict(os.environ),
            log_file=self.folder / "logs" / f"{name}.log",
            pid_file=self.folder / "run" / f"{name}.pid",
            **options,  # type: ignore[arg-type] # names of the constructor's arguments
        )

    def run_files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "run").glob("*"))


@pytest.fixture
def children(tmp_path) -> Children:
    return Children(tmp_path)


async def answered(value: T) -> T:
    return value


def gone(pid: int | None) -> bool:
    return pid is not None and started_at(pid) is None


async def test_child_has_session_log_and_pid_file(children):
    child = children.child("print('hello', flush=True); READY; WAIT")
    await child.start()
    pid = child.pid
    assert pid is not None
    assert os.getsid(pid) == pid
    assert (children.folder / "run" / "child.pid").read_text() == f"{pid}\n"
    assert PidFile(children.folder / "run" / "child.pid").running() is not None
    assert child.log_tail() == "hello"
    assert child.exit_reason() is None
    assert await child.stop(asyncio.Event())
    assert gone(pid)
    assert child.pid is None
    assert children.run_files() == []


async def test_early_exit_is_reported_with_log(children):
    log = children.folder / "logs" / "child.log"
    log.parent.mkdir()
    log.write_text("error of an earlier run\n")
    child = children.child("print('no database', flush=True); raise SystemExit(3)")
    with pytest.raises(ProcessError) as caught:
        await child.start()
    assert str(caught.value) == f"child ended with code 3 before it was ready; the end of {log}:\nno database"
    assert children.run_files() == []


async def test_unready_child_is_reported_and_stopped(children):
    child = children.child("print(__import__('os').getpid(), flush=True); WAIT", ready_timeout=timedelta(seconds=1))
    with pytest.raises(ProcessError, match=r"^child was not ready within 1 s; the end of "):
        await child.start()
    assert gone(int(child.log_tail()))
    assert children.run_files() == []


async def test_missing_program_is_reported(tmp_path):
    async def never() -> bool:
        return False

    child = ChildProcess(
        "child",
        [str(tmp_path / "missing")],
        ready=never,
        environment=dict,
        log_file=tmp_path / "child.log",
        pid_file=tmp_path / "child.pid",
    )
    with pytest.raises(ProcessError, match=r"child cannot be run: .*missing: No such file or directory"):
        await child.start()
    assert not (tmp_path / "child.pid").exists()


async def test_kill_child_that_ignores_sigterm(children):
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); READY; WAIT"
    child = children.child(stubborn, stop_timeout=timedelta(seconds=0.5))
    await child.start()
    pid, began = child.pid, time.monotonic()
    assert not await child.stop(asyncio.Event())
    assert time.monotonic() - began >= 0.5
    assert gone(pid)
    assert children.run_files() == []


async def test_hurry_kills_child_at_once(children):
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); READY; WAIT"
    child = children.child(stubborn, stop_timeout=timedelta(seconds=60))
    await child.start()
    hurry = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, hurry.set)
    async with asyncio.timeout(10):
        assert not await child.stop(hurry)
    assert children.run_files() == []


async def test_kill_includes_descendants(children):
    child = children.child(
        "import subprocess, sys; started = subprocess.Popen([sys.executable, '-c', 'WAIT']); "
        "print(started.pid, flush=True); READY; started.wait()"
    )
    await child.start()
    grandchild = int(child.log_tail())
    assert not gone(grandchild)
    await child.kill()
    await eventually(lambda: answered(gone(grandchild)), what="end of the grandchild")


async def test_killed_child_is_reported_and_restartable(children):
    child = children.child("READY; WAIT")
    await child.start()
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    how = await eventually(lambda: answered(child.exit_reason()), what="end of the child")
    assert how == f"process {first} was ended by SIGKILL"
    await child.start()
    assert child.pid not in (None, first)
    assert (children.folder / "run" / "child.pid").read_text() == f"{child.pid}\n"
    await child.stop(asyncio.Event())


async def test_reject_second_start_of_running_child(children):
    child = children.child("READY; WAIT")
    await child.start()
    with pytest.raises(ProcessError, match=rf"child already runs as process {child.pid}"):
        await child.start()
    assert await child.stop(asyncio.Event())
    assert await child.stop(asyncio.Event()), "the second stop failed"


async def test_failed_start_stops_all_children(children):
    slow = children.child("WAIT", "slow")
    good = children.child("READY; WAIT", "good")
    bad = children.child("raise SystemExit(1)", "bad")
    with pytest.raises(ProcessError, match="bad ended with code 1"):
        await run_together(child.start() for child in (good, slow, bad))
    for child in (slow, good, bad):
        await child.stop(asyncio.Event())
    assert children.run_files() == []


async def test_cancelled_start_stops_all_children(children):
    child = children.child("print(__import__('os').getpid(), flush=True); WAIT")
    starting = asyncio.ensure_future(child.start())
    log = children.folder / "logs" / "child.log"
    await eventually(lambda: answered(log.exists() and log.read_text().endswith("\n")), what="sign of the child")
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert gone(int(child.log_tail()))
    assert children.run_files() == []


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "ended with code 0"), (7, "ended with code 7"), (-9, "was ended by SIGKILL"), (-99, "was ended by signal 99")],
)
def test_describe_exit_codes(code, words):
    assert describe_exit(code) == words

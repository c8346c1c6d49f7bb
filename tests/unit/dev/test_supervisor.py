"""Supervision of real processes: each one is restarted by itself, without end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.http import http_client
from perdure._runtime.ports import free_ports
from perdure.dev import supervisor as supervision
from perdure.dev.pidfiles import started_at
from perdure.dev.processes import ChildProcess, ProcessError
from perdure.dev.supervisor import Supervisor, restart_delay
from perdure.dev.waits import reported_wait
from tests.support import eventually

SERVER = """
import signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
SETUP
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Platform(Supervisor):
    """Supervised HTTP servers, each a tier of its own."""

    def __init__(self, folder: Path, http: httpx.AsyncClient, **setups: str) -> None:
        self.lines: list[str] = []
        self.ports = dict(zip(setups, free_ports(len(setups)), strict=True))
        tiers = [{name: self._child(folder, http, name, setup)} for name, setup in setups.items()]
        super().__init__(tiers, report=self.lines.append, silence_limit=timedelta(seconds=1))

    def _child(self, folder: Path, http: httpx.AsyncClient, name: str, setup: str) -> ChildProcess:
        async def ready() -> bool:
            try:
                return (await http.get(f"http://127.0.0.1:{self.ports[name]}", timeout=0.5)).is_success
            except httpx.TransportError:
                return False

        return ChildProcess(
            name,
            [sys.executable, "-c", SERVER.replace("SETUP", setup), str(self.ports[name])],
            ready=ready,
            environment=lambda: dict(os.environ),
            log_file=folder / "logs" / f"{name}.log",
            pid_file=folder / "run" / f"{name}.pid",
        )

    def signal(self, name: str, number: signal.Signals) -> int:
        pid = self.pid(name)
        assert pid is not None
        os.kill(pid, number)
        return pid

    async def until_replaced(self, name: str, pid: int) -> None:
        again = f"{name} runs again as process "
        await eventually(
            lambda: any(line.startswith(again) for line in self.lines) and self.pid(name) not in (None, pid),
            what=lambda: f"new process of {name}: {self.lines}",
        )


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with http_client("http://127.0.0.1") as client:
        yield client


@pytest.fixture
def supervised(tmp_path: Path, http: httpx.AsyncClient) -> Callable[..., object]:
    @asynccontextmanager
    async def run(**setups: str) -> AsyncIterator[Platform]:
        platform = Platform(tmp_path, http, **setups)
        await platform.start()
        supervision = asyncio.ensure_future(platform.supervise())
        try:
            yield platform
            assert not supervision.done(), "the supervision ended"
        finally:
            supervision.cancel()
            await asyncio.wait({supervision})
            await platform.stop(asyncio.Event())
            assert list((tmp_path / "run").glob("*.pid")) == []

    return run


async def test_killed_process_is_restarted(supervised):
    async with supervised(one="") as platform:
        pid = platform.signal("one", signal.SIGKILL)
        await platform.until_replaced("one", pid)
        assert platform.lines[0] == f"one: process {pid} was ended by SIGKILL; restarting it"


async def test_stopped_process_is_killed_and_restarted(supervised, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervision, "_END_TIMEOUT", 0.2)
    async with supervised(one="") as platform:
        pid = platform.signal("one", signal.SIGSTOP)
        await platform.until_replaced("one", pid)
        assert platform.lines[0] == (
            f"one: process {pid} did not answer for 1 s and was ended by SIGKILL; restarting it"
        )
        assert started_at(pid) is None


async def test_hanging_process_ends_by_sigterm(supervised, tmp_path: Path):
    hang = tmp_path / "hang"
    once = f"os.path.exists({str(hang)!r}) and (os.unlink({str(hang)!r}), time.sleep(1000))"
    async with supervised(one=f"import os, time\nHandler.log_message = lambda *_: {once}", two="") as platform:
        pid = platform.pid("one")
        hang.touch()
        await platform.until_replaced("one", pid)
        assert platform.lines[0] == (
            f"one: process {pid} did not answer for 1 s and was ended by SIGTERM; restarting it"
        )
        assert not any(line.startswith("two") for line in platform.lines)


async def test_process_that_cannot_start_does_not_end_others(supervised, tmp_path: Path):
    broken = tmp_path / "broken"
    setup = f"import os\nif os.path.exists({str(broken)!r}): sys.exit('the disk is on fire')"
    async with supervised(bad=setup, good="") as platform:
        broken.touch()
        failed = platform.signal("bad", signal.SIGKILL)
        await eventually(lambda: any("does not start" in line for line in platform.lines), what="failed start")
        killed = platform.signal("good", signal.SIGKILL)
        await platform.until_replaced("good", killed)
        assert not any("bad runs again" in line for line in platform.lines)
        (report,) = [line for line in platform.lines if "does not start" in line]
        first, *log = report.split("\n")
        assert first.startswith("bad does not start, trying again every 5 s: bad ended with code 1 before it was ready")
        assert log == ["the disk is on fire"]

        broken.unlink()
        await platform.until_replaced("bad", failed)
        assert len([line for line in platform.lines if "does not start" in line]) == 1, "one report per cause"


async def test_unwritable_log_does_not_end_supervision(supervised, tmp_path: Path):
    async with supervised(one="") as platform:
        logs = tmp_path / "logs"
        logs.rename(tmp_path / "moved")
        logs.write_text("a file where the folder was")
        pid = platform.signal("one", signal.SIGKILL)
        await eventually(lambda: any("does not start" in line for line in platform.lines), what="failed start")
        assert any("one cannot be started: " in line and str(logs) in line for line in platform.lines)
        logs.unlink()
        (tmp_path / "moved").rename(logs)
        await platform.until_replaced("one", pid)


async def test_process_stopped_on_purpose_stays_stopped(supervised):
    async with supervised(one="", two="") as platform:
        await platform.kill("one")
        pid = platform.signal("two", signal.SIGKILL)
        await platform.until_replaced("two", pid)
        assert platform.pid("one") is None
        await platform.restart("one")


async def test_failed_first_start_raises(tmp_path: Path, http: httpx.AsyncClient):
    platform = Platform(tmp_path, http, one="", two="sys.exit('no')")
    with pytest.raises(ProcessError, match=r"^two ended with code 1 before it was ready; the end of .*:\nno$"):
        await platform.start()
    await platform.stop(asyncio.Event())
    assert platform.pid("one") is None


@given(st.integers(min_value=0, max_value=10_000))
def test_restart_delay_grows_to_limit(failures: int):
    assert restart_delay(0) == 0
    assert restart_delay(failures) <= restart_delay(failures + 1) <= 5


async def test_long_wait_is_reported():
    lines: list[str] = []
    async with reported_wait(lines.append, lambda: "the database", first=timedelta(seconds=0.01)):
        await eventually(lambda: len(lines) >= 3, what="reports")
    assert lines[0] == "waiting for the database (0 s)"
    reported = len(lines)
    await asyncio.sleep(0)
    assert len(lines) == reported

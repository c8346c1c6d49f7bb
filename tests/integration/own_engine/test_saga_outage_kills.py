"""A kill -9 while a rollback waits for the next attempt of a compensation, whose dependency is down for hours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from perdure import IngressClient
from perdure._runtime.ports import free_ports
from perdure.engine.admin import AdminClient
from perdure.saga.messages import StepStatus, rollback_status
from perdure.testing import RestateServer
from tests.integration import outage_process
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")

SCALE = 20  # a day takes over an hour, the longest delay three seconds


class SagaProcess:
    """The services of a saga, in a process of their own."""

    def __init__(self, folder: Path) -> None:
        self._port = free_ports(1)[0]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        command = [sys.executable, "-m", outage_process.__name__, str(self._port), str(self._folder)]
        environment = {**os.environ, "PERDURE_TIME_SCALE": str(SCALE)}
        with (self._folder / "log").open("ab") as log:
            self._process = process = subprocess.Popen(  # noqa: ASYNC220 - a moment
                command, stdout=log, stderr=log, env=environment
            )
        async with httpx.AsyncClient(trust_env=False) as http:

            async def ready() -> bool:
                assert process.poll() is None, (self._folder / "log").read_text()
                try:
                    return (await http.get(f"{self.url}/ready")).is_success
                except httpx.TransportError:
                    return False

            await eventually(ready, what="process that is ready")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def count(self, name: str) -> int:
        file = self._folder / name
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
async def process(admin: AdminClient, tmp_path: Path) -> AsyncIterator[SagaProcess]:
    process = SagaProcess(tmp_path)
    await process.start()
    await admin.register(process.url)
    yield process
    process.kill()
    for deployment in await admin.deployments():
        if str(deployment["uri"]).rstrip("/") == process.url:
            await admin.remove_deployment(deployment["id"])


@pytest.mark.parametrize("killed", ["services", "engine"])
async def test_compensation_retries_continue_after_kill(
    engine: RestateServer, process: SagaProcess, tmp_path: Path, killed: str
):
    key = str(uuid4())
    async with IngressClient(engine.ingress) as ingress:
        await ingress.send(outage_process.book, key=key)

        async def waiting(attempts: int) -> StepStatus | None:
            status = await ingress.call(rollback_status, key=f"OutageOrders:{key}")
            (step,) = status.steps
            return step if step.attempts >= attempts and step.next_attempt_at is not None else None

        await eventually(lambda: process.count("visits") > 0, what="attempt of the compensation")
        before = await eventually(lambda: waiting(2), what="retried compensation")
        if killed == "services":
            process.kill()
            await process.start()
        else:
            await engine.engine.kill()
            await engine.engine.start()
        after = await eventually(lambda: waiting(before.attempts + 2), what="further attempts after the restart")
        assert (after.trying_since, after.state) == (before.trying_since, "pending")
        (tmp_path / "repaired").touch()

        async def undone() -> bool:
            return (await ingress.call(rollback_status, key=f"OutageOrders:{key}")).steps[0].state == "undone"

        await eventually(undone, what="compensation after the outage")
    assert process.count("effects") == 1

"""A real process of ``serving_process.py``, for tests of its stop and of hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from perdure._runtime.ports import free_ports
from perdure.engine.admin import AdminClient
from perdure.testing import RestateServer
from tests.support import eventually

SCRIPT = Path(__file__).with_name("serving_process.py")


class Service:
    """Process under test, its engine, and the output file of its steps."""

    def __init__(self, folder: Path, ingress: str, admin: str) -> None:
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.journal = folder / "journal"
        self.log = folder / "log"
        self.journal.touch()
        self.ingress = ingress
        self.admin = AdminClient(admin)
        self.http = httpx.AsyncClient(timeout=60, trust_env=False)
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self, grace: float = 10, *, stderr_unread: bool = False, **environment: str) -> None:
        command = [sys.executable, SCRIPT, str(self.port), self.journal, str(grace)]
        with self.log.open("ab") as log:
            stderr = subprocess.PIPE if stderr_unread else log
            self.process = subprocess.Popen(command, stdout=log, stderr=stderr, env=os.environ | environment)

    async def start(self, grace: float = 10, *, stderr_unread: bool = False, **environment: str) -> None:
        self.spawn(grace, stderr_unread=stderr_unread, **environment)
        await eventually(self.ready, what="ready service")

    async def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return (await self.http.get(f"{self.url}/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Stop the process and return the duration."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        await self.ended()
        return time.monotonic() - began

    async def ended(self) -> None:
        assert self.process is not None
        process = self.process
        await eventually(lambda: process.poll() is not None, what="end of the process")

    async def send(self, handler: str, value: object) -> None:
        (await self.http.post(f"{self.ingress}/StoppedWork/{handler}/send", json=value)).raise_for_status()

    def steps(self) -> list[str]:
        return [line for line in self.journal.read_text().splitlines() if line not in ("opened", "closed")]

    def log_line(self, event: str) -> dict[str, Any]:
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return next(line for line in lines if line["event"] == event)

    async def draining(self) -> bool:
        answer = await self.http.get(f"{self.url}/ready")
        return answer.status_code == 503 and answer.json() == {"status": "draining"}

    async def unfinished(self) -> int:
        sql = "select count(*) as n from sys_invocation where target_service_name='StoppedWork' and status!='completed'"
        return int((await self.admin.query(sql))[0]["n"])

    async def all_done(self) -> bool:
        return await self.unfinished() == 0

    async def sleeps(self) -> bool:
        """Return whether a handler sleeps, so that the engine has stored all earlier entries."""
        sql = """select j.id from sys_journal j join sys_invocation_status i on i.id = j.id
            where i.target_service_name = 'StoppedWork' and i.status != 'completed' and j.entry_type like '%Sleep%'"""
        return bool(await self.admin.query(sql))


@asynccontextmanager
async def service_of(server: RestateServer, folder: Path) -> AsyncIterator[Service]:
    """Yield a service, and remove its process, registration and invocations at the end."""
    service = Service(folder, server.ingress, server.admin)
    yield service
    if service.process is not None and service.process.poll() is None:
        service.process.kill()
        service.process.wait()
    if service.process is not None and service.process.stderr is not None:
        service.process.stderr.close()
    for row in await service.admin.query(
        "select id from sys_invocation where target_service_name='StoppedWork' and status!='completed'"
    ):
        await service.admin.control_invocation(row["id"], "kill")
    for deployment in await service.admin.deployments():
        if str(deployment["uri"]).rstrip("/") == service.url:
            await service.admin.remove_deployment(deployment["id"])
    await service.http.aclose()
    await service.admin.close()

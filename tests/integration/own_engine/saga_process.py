"""The services of a saga, in a process of their own that tests kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import httpx

from perdure._runtime.ports import free_ports
from perdure.engine.admin import AdminClient
from tests.support import eventually


class SagaProcess:
    """A process of a module that serves its services: ``python -m MODULE PORT FOLDER``.

    Args:
        module: The module.
        folder: The folder of its effects and its log.
        settings: Environment variables.
    """

    def __init__(self, module: str, folder: Path, **settings: str) -> None:
        self._module = module
        self._port = free_ports(1)[0]
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    @classmethod
    @asynccontextmanager
    async def serving(cls, module: str, folder: Path, admin: AdminClient, **settings: str) -> AsyncIterator[Self]:
        """Start and register the process; kill it at the end, and remove its registration."""
        process = cls(module, folder, **settings)
        try:
            await process.start()
            await admin.register(process.url)
            yield process
        finally:
            process.kill()
            for deployment in await admin.deployments():
                if str(deployment["uri"]).rstrip("/") == process.url:
                    await admin.remove_deployment(deployment["id"])

    async def start(self) -> None:
        command = [sys.executable, "-m", self._module, str(self._port), str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            self._process = process = subprocess.Popen(  # noqa: ASYNC220 - a moment
                command, stdout=log, stderr=log, env={**os.environ, **self._settings}
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

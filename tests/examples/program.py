"""Documented programs as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from perdure._runtime.ports import free_ports
from perdure.engine.watchdog import Watchdog


class Program:
    """A documented program that serves handlers."""

    def __init__(self, folder: Path, name: str) -> None:
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, str(folder / f"{name}.py"), str(self.port)]
        self._said = folder / f"{name}.log"
        self._watchdog = Watchdog().start()

    @contextmanager
    def running(self) -> Iterator[Program]:
        with self._said.open("ab") as said:
            # Shorten the waits of the documented code.
            env = {**os.environ, "PERDURE_TIME_SCALE": "10"}
            process = subprocess.Popen(self._command, stdout=said, stderr=said, env=env, cwd=self._said.parent)
        self._watchdog.watch(process.pid)
        try:
            yield self
        finally:
            process.kill()
            process.wait()

    def said(self, start: str) -> list[str]:
        return [line for line in self._said.read_text(encoding="utf-8").splitlines() if line.startswith(start)]

    def dismiss(self) -> None:
        self._watchdog.dismiss()

    async def ready(self) -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                return (await http.get(f"{self.url}/ready")).is_success
        except httpx.TransportError:
            return False

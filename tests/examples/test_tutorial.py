"""The files of the tutorial behave as documented."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from perdure import IngressClient, Target
from perdure._runtime.ports import free_ports
from perdure.engine.admin import AdminClient
from perdure.engine.watchdog import Watchdog
from perdure.errors import IngressError
from perdure.saga import hosting
from tests.support import eventually

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial" / "first-saga.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL))
BODY = json.loads(re.search(r"Journeys/first/run .* -d '(.*)'", TEXT)[1])
REGISTRATIONS = [json.loads(body) for body in re.findall(r":9070/deployments .* -d '(.*)'", TEXT)]
run_journey = Target("Journeys", "run", dict[str, str], list[str])


class Program:
    """One of the tutorial's two programs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, str(folder / f"{name}.py"), str(self.port)]
        self._said = folder / f"{name}.log"
        self._watchdog = Watchdog().start()

    @contextmanager
    def running(self) -> Iterator[Program]:
        with self._said.open("ab") as said:
            # Shorten the tutorial's ten seconds to one.
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


@pytest.mark.restate_modes("http2")
async def test_tutorial_saga_books_rolls_back_survives_kill(restate, tmp_path):
    assert list(FILES) == ["contracts.py", "agency.py", "journeys.py"]
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    env = await restate.serve(*hosting.definitions())  # the services of `make run` that this test needs
    agency, journeys = Program(tmp_path, "agency"), Program(tmp_path, "journeys")
    admin = AdminClient(env.admin)
    async with admin, IngressClient(env.ingress) as ingress:
        try:
            with agency.running():
                with journeys.running():
                    for program, registration in zip((agency, journeys), REGISTRATIONS, strict=True):
                        await eventually(program.ready, what="program", within=60)
                        assert registration["force"], "without it, a second registration would change nothing"
                        await admin.register(program.url, force=registration["force"])
                    assert await ingress.call(run_journey, BODY, key="first") == ["PD100-1", "Harbour-1"]
                    await _a_full_hotel(ingress, agency)
                    third = asyncio.create_task(ingress.call(run_journey, BODY, key="third"))
                    await eventually(_said(agency, "booked PD100 for third"), what="booking")
                # Kill and restart the process during the saga.
                with journeys.running():
                    assert await third == ["PD100-1", "Harbour-1"]
            assert len(agency.said("booked PD100 for third")) == 1
            assert agency.said("gave back PD100 of third") == []
        finally:
            for program in (agency, journeys):
                program.dismiss()
            for deployment in await admin.deployments():
                if str(deployment["uri"]).rstrip("/") in (agency.url, journeys.url):
                    await admin.remove_deployment(deployment["id"])


async def _a_full_hotel(ingress: IngressClient, agency: Program) -> None:
    promised = json.loads(re.search(r'^\{"code".*\}$', TEXT, flags=re.MULTILINE)[0])
    with pytest.raises(IngressError) as failed:
        await ingress.call(run_journey, {**BODY, "hotel": "Attic"}, key="second")
    error = failed.value
    assert (error.status_code, error.message) == (promised["code"], promised["message"])
    assert promised["metadata"].items() <= error.metadata.items()
    assert len(agency.said("gave back PD100 of second")) == 1


def _said(program: Program, start: str):
    async def probe() -> bool:
        return bool(program.said(start))

    return probe

"""The platform's own services in the process of an application."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from perdure._runtime.ports import free_ports
from perdure.errors import ConfigurationError
from perdure.hosting import HostedPlatform
from services.runtime.topology import service


def test_host_all_services_of_library():
    hosted = {definition.name for definition in HostedPlatform.from_environment().definitions()}
    assert hosted == {*service("saga").serves, *service("approvals").serves}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("PERDURE_SAGA_RECONCILER_WEBHOOK_URL", "ftp://alerts", "webhook_url must begin with https:// or http://"),
        ("PERDURE_SAGA_RECONCILER_WEBHOOK_KEY_FILE", "/nowhere/key", "/nowhere/key"),
        ("PERDURE_LINK_KEYS", "no-key", "no-key"),
    ],
)
def test_reject_invalid_setting(monkeypatch, name, value, error):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=error):
        HostedPlatform.from_environment()


PROGRAM = """
import os, signal, sys
from contextlib import asynccontextmanager
from pathlib import Path

from perdure import DataPlaneContext, DataPlaneService
from perdure.serving import serve

class Ticker(DataPlaneService):
    @asynccontextmanager
    async def watching(self):
        os.kill(os.getpid(), signal.SIGTERM)
        yield
        Path(sys.argv[2]).write_text("ended")

ticker = Ticker("Ticker")

@ticker.handler()
async def tick(ctx: DataPlaneContext) -> None: ...

serve(ticker, port=int(sys.argv[1]))
"""


def test_background_work_runs_while_served(tmp_path: Path):
    (port,) = free_ports(1)
    command = [sys.executable, "-c", PROGRAM, str(port), tmp_path / "work"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "work").read_text() == "ended"

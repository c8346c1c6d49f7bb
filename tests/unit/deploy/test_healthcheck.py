"""The health check of the image, run with the container's command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from perdure._runtime.ports import free_ports

SCRIPT = Path(__file__).parents[3] / "deploy" / "docker" / "healthcheck.py"


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        well = self.path == "/ready"
        self.send_response(200 if well else 503)
        self.end_headers()
        self.wfile.write(b"" if well else b'{"status": "draining"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def check(url: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-IS", SCRIPT, url], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip()


def test_healthy_process_passes(url: str) -> None:
    assert check(f"{url}/ready") == (0, "")


def test_unhealthy_process_fails(url: str) -> None:
    assert check(f"{url}/drains") == (1, f'{url}/drains answers 503: {{"status": "draining"}}')


def test_missing_process_fails() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}/ready"
    code, said = check(url)
    assert code == 1
    assert said.startswith(f"{url} does not answer: ")
    assert "Traceback" not in said

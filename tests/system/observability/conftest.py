from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytest_asyncio

from perdure._runtime.ports import free_ports
from perdure.dev.processes import ChildProcess
from perdure.engine import locate_engine
from services.runtime.connections import answers, local_http
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.system.observability.prometheus import Prometheus, locate_prometheus
from tests.system.observability.receiver import TraceReceiver
from tests.system.scenarios.harness import Harness, harness_environment


class Webhook:
    """Webhook for alerts, which responds with 503 until `accepts` is set."""

    def __init__(self) -> None:
        self.accepts = threading.Event()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(204 if webhook.accepts.is_set() else 503)
                self.end_headers()

            def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the name of the base class
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"

    @contextmanager
    def listening(self) -> Iterator[Webhook]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@dataclass
class Observed:
    """Running platform with its observability tools.

    Args:
        harness: The harness.
        receiver: The receiver of its spans.
        prometheus: Its Prometheus; None if not installed.
        webhook: The webhook for alerts.
        reports_url: The URL of the unregistered `defective_service`.
    """

    harness: Harness
    receiver: TraceReceiver
    prometheus: Prometheus | None
    webhook: Webhook
    reports_url: str


@asynccontextmanager
async def defective_service(folder: Path, **environment: str) -> AsyncIterator[int]:
    """Run the defective service with environment variables, and return its port."""
    (port,) = free_ports(1)
    async with local_http() as http:
        process = ChildProcess(
            "reports",
            [sys.executable, "-P", "-m", "tests.system.observability.defective_service", str(port)],
            ready=lambda: answers(http, f"http://127.0.0.1:{port}/ready"),
            environment=lambda: {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path])),
                "PERDURE_POLICY": "warn",
                **environment,
            },
            log_file=folder / "reports.log",
            pid_file=folder / "reports.pid",
        )
        await process.start()
        try:
            yield port
        finally:
            await process.kill()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def observed(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Observed]:
    """A platform with empty data on free ports, which sends its spans to a receiver."""
    engine = locate_engine(pytestconfig.rootpath / ".local" / "engine")
    topology = Topology.on_free_ports(tmp_path_factory.mktemp("observed"), PlatformSettings())
    with TraceReceiver() as receiver, Webhook().listening() as webhook:
        environment = {
            **harness_environment(os.environ),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            # The first stage of an approval ends after two thirds of this.
            "PERDURE_ORCHESTRATOR_APPROVAL_TIMEOUT": "PT12S",
            "PERDURE_APPROVALS_RECONCILER_INTERVAL": "PT0.5S",
            "PERDURE_SAGA_RECONCILER_WEBHOOK_URL": webhook.url,
            "PERDURE_SAGA_RECONCILER_HANGING_LIMIT": "PT10S",
        }
        platform = Platform(topology, engine, report=print, environment=environment, console=True)
        binary = locate_prometheus(os.environ, pytestconfig.rootpath / ".local")
        prometheus = None
        try:
            async with defective_service(tmp_path_factory.mktemp("reports")) as reports:
                await platform.start()
                if binary is not None:
                    home = tmp_path_factory.mktemp("prometheus") / "it"
                    prometheus = Prometheus(binary, topology, home, shorten=120, others={"reports": reports})
                    await prometheus.start()
                async with Harness.on(platform) as harness:
                    yield Observed(harness, receiver, prometheus, webhook, f"http://127.0.0.1:{reports}")
        finally:
            if prometheus is not None:
                await prometheus.stop()
            await platform.stop(asyncio.Event())

"""A second console, which can be disconnected from the engine, stopped and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import BrowserContext

from perdure._runtime.ports import free_ports
from perdure.engine.watchdog import Watchdog
from tests.e2e.console_platform import ADMINISTRATOR, PASSWORD, ConsolePlatform
from tests.e2e.launched import PROGRAM


class TcpProxy:
    """A TCP proxy to a local port, which can be cut."""

    def __init__(self, to: int) -> None:
        (self.port,) = free_ports(1)
        self._to = to
        self._open: set[socket.socket] = set()
        self._server: socketserver.ThreadingTCPServer | None = None
        self.restore()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def restore(self) -> None:
        """Accept connections."""
        if self._server is not None:
            return
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._carry(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        if self._server is not None:
            self._server.shutdown()
            for each in list(self._open):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._server.server_close()
            self._server = None

    def _carry(self, near: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._to)) as far:
            self._open |= {near, far}
            back = threading.Thread(target=_pump, args=(far, near))
            back.start()
            _pump(near, far)
            back.join()
            self._open -= {near, far}


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class Outage:
    """A second console for the engine of a platform, with faults."""

    def __init__(self, home: Path, platform: ConsolePlatform) -> None:
        env = platform.launched.env
        self._platform = platform
        self.engine = [TcpProxy(int(env[f"PERDURE_{name}_PORT"])) for name in ("ADMIN", "INGRESS")]
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._env = {
            **{name: value for name, value in env.items() if not name.startswith("PERDURE_")},
            "PERDURE_LOCAL_DIR": str(home),
            "PERDURE_CONSOLE_PORT": str(port),
            "PERDURE_ADMIN_URL": self.engine[0].url,
            "PERDURE_INGRESS_URL": self.engine[1].url,
        }
        self._log = home.with_name(f"{home.name}.log")
        self._watchdog = Watchdog(ending=signal.SIGKILL).start()
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start the console unless it runs, and wait until it is ready."""
        if self._process is not None:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "services.console.main"], env=self._env, stdout=log, stderr=log
            )
        self._watchdog.watch(self._process.pid)
        self._platform.until(self._is_ready, "ready console", within=60)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill the console."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the console for the duration of the block: connections stay open without responses."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def cut(self) -> None:
        """Disconnect the console from the engine."""
        for proxy in self.engine:
            proxy.cut()

    def restore(self) -> None:
        """Reconnect the engine, and start the console unless it runs."""
        for proxy in self.engine:
            proxy.restore()
        self.begin()

    def end(self) -> None:
        """Stop everything."""
        self.kill()
        self._watchdog.dismiss()
        self.cut()

    def add_administrator(self) -> None:
        """Add an administrator."""
        subprocess.run(
            [PROGRAM, "console", "admin", "--name", ADMINISTRATOR, "--role", "approver", "--password-stdin"],
            env=self._env,
            input=f"{PASSWORD}\n",
            text=True,
            check=True,
            timeout=60,
        )

    def sign_in(self, context: BrowserContext) -> None:
        """Sign in as administrator."""
        credentials = {"name": ADMINISTRATOR, "password": PASSWORD}
        answer = httpx.post(f"{self.url}/api/session", json=credentials, trust_env=False, timeout=30)
        context.add_cookies(
            [{"name": "perdure-console", "value": answer.raise_for_status().json()["token"], "url": self.url}]
        )

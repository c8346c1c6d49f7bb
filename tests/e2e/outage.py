"""A console of its own, whose line to the engine can be cut, and which can be killed and come back."""

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
from tests.e2e.consoled import ADMINISTRATOR, PASSWORD, Consoled
from tests.e2e.launched import PROGRAM


class Line:
    """A line to a port of this machine, which can be cut and mended.

    Args:
        to: The port.
    """

    def __init__(self, to: int) -> None:
        (self.port,) = free_ports(1)
        self._to = to
        self._open: set[socket.socket] = set()
        self._server: socketserver.ThreadingTCPServer | None = None
        self.mend()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def mend(self) -> None:
        """Take connections, if it does not."""
        if self._server is not None:
            return
        line = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                line._carry(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
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
    """A console that can lose the engine, and that can be lost itself.

    Args:
        home: Its folder.
        consoled: The platform whose engine it shows.
    """

    def __init__(self, home: Path, consoled: Consoled) -> None:
        env = consoled.launched.env
        self._consoled = consoled
        self.engine = [Line(int(env[f"PERDURE_{name}_PORT"])) for name in ("ADMIN", "INGRESS")]
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
        """Start the console, if it does not run, and wait until it answers."""
        if self._process is not None:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "services.console.main"], env=self._env, stdout=log, stderr=log
            )
        self._watchdog.watch(self._process.pid)
        self._consoled.until(self._answers, "console that answers", within=60)

    def _answers(self) -> bool:
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
    def held(self) -> Iterator[None]:
        """Have the console stand still, as long as the context lasts: its connections stay, and nothing answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def cut(self) -> None:
        """Cut the console off from the engine."""
        for line in self.engine:
            line.cut()

    def restore(self) -> None:
        """Have the console run, with a line to the engine."""
        for line in self.engine:
            line.mend()
        self.begin()

    def end(self) -> None:
        """End all of it."""
        self.kill()
        self._watchdog.dismiss()
        self.cut()

    def add_administrator(self) -> None:
        """Make an administrator."""
        subprocess.run(
            [PROGRAM, "console", "admin", "--name", ADMINISTRATOR, "--role", "approver", "--password-stdin"],
            env=self._env,
            input=f"{PASSWORD}\n",
            text=True,
            check=True,
            timeout=60,
        )

    def let_in(self, context: BrowserContext) -> None:
        """Sign the administrator in."""
        credentials = {"name": ADMINISTRATOR, "password": PASSWORD}
        answer = httpx.post(f"{self.url}/api/session", json=credentials, trust_env=False, timeout=30)
        context.add_cookies(
            [{"name": "perdure-console", "value": answer.raise_for_status().json()["token"], "url": self.url}]
        )

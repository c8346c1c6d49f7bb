"""Stands between the doctor and a server, and changes what it answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

Change = Callable[[str, dict[str, Any]], Any]
"""Is given a path and the answer, and returns what is answered instead."""


@contextmanager
def meddling(server: str, change: Change = lambda _, answer: answer, clock: datetime | None = None) -> Iterator[str]:
    """Stand before a server; the value is the address to ask.

    Args:
        server: The server that is asked in truth.
        change: What becomes of its answers in JSON.
        clock: What it believes the time to be; None for the right one.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on(httpx.get(f"{server.rstrip('/')}{self.path}", headers={"accept": self.headers["accept"]}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {"accept": "application/json", "content-type": "application/json"}
            self._pass_on(httpx.post(f"{server.rstrip('/')}{self.path}", content=body, headers=headers))

        def _pass_on(self, answer: httpx.Response) -> None:
            content = answer.content
            if "json" in answer.headers.get("content-type", ""):
                content = json.dumps(change(self.path, answer.json())).encode()
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(timestamp if clock is None else clock.timestamp())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
            """Say nothing."""

    standing = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=standing.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{standing.server_port}"
    finally:
        standing.shutdown()
        standing.server_close()
        thread.join(10)

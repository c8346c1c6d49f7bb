"""HTTP proxy that changes responses, for tests of the doctor."""

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
"""Returns the changed response of a path."""


@contextmanager
def changing_proxy(
    server: str, change: Change = lambda _, response: response, clock: datetime | None = None
) -> Iterator[str]:
    """Run a proxy of a server and return its URL.

    Args:
        server: The URL of the server.
        change: Changes JSON responses.
        clock: The time in the Date header; None for the current time.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._forward(httpx.get(f"{server.rstrip('/')}{self.path}", headers={"accept": self.headers["accept"]}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {"accept": "application/json", "content-type": "application/json"}
            self._forward(httpx.post(f"{server.rstrip('/')}{self.path}", content=body, headers=headers))

        def _forward(self, response: httpx.Response) -> None:
            content = response.content
            if "json" in response.headers.get("content-type", ""):
                content = json.dumps(change(self.path, response.json())).encode()
            self.send_response(response.status_code)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(timestamp if clock is None else clock.timestamp())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
            """Log nothing."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)

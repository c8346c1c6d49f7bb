"""Webhook receiver that stores verified notifications and fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from perdure.alerts.conditions import AlertNotification
from perdure.alerts.webhook import verify_alert
from perdure.security import PrivateKey

OK = 204


class Receiver:
    """Webhook receiver.

    Args:
        key: The sender's key.
        answer: Returns the response status; may block, or raise ConnectionError to close the connection.
    """

    def __init__(self, key: PrivateKey, answer: Callable[[AlertNotification], int]) -> None:
        self.url = ""
        self.ended = threading.Event()
        self._key = key
        self._answer = answer
        self._accepted: list[tuple[str, AlertNotification]] = []
        self._requests: list[tuple[str, AlertNotification]] = []

    def took(self, service: str) -> list[AlertNotification]:
        """Return the accepted notifications about a service, in order."""
        return [notification for _, notification in list(self._accepted) if notification.alert.service == service]

    def ids(self, service: str) -> list[str]:
        """Return the idempotency keys of all requests about a service."""
        return [number for number, notification in list(self._requests) if notification.alert.service == service]

    def take(self, body: bytes, headers: dict[str, str]) -> int:
        """Verify and store a request; return the status."""
        notification = verify_alert(body, headers, self._key.public)
        self._requests.append((headers["idempotency-key"], notification))
        status = self._answer(notification)
        if status == OK:
            self._accepted.append((headers["idempotency-key"], notification))
        return status


@contextmanager
def receiving(receiver: Receiver, port: int = 0) -> Iterator[Receiver]:
    """Serve a receiver on a port; 0 selects a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            try:
                status = receiver.take(body, {name.lower(): value for name, value in self.headers.items()})
            except ConnectionError:
                return
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield receiver
    finally:
        receiver.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(10)

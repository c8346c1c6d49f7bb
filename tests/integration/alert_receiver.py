"""A real webhook: keeps what it is posted, and behaves as badly as it is told."""

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
    """What arrived.

    Args:
        key: What the reconciler signs with.
        answer: Returns the status for a piece of news; may block, or raise ConnectionError to say nothing.
    """

    def __init__(self, key: PrivateKey, answer: Callable[[AlertNotification], int]) -> None:
        self.url = ""
        self.ended = threading.Event()
        self._key = key
        self._answer = answer
        self._taken: list[tuple[str, AlertNotification]] = []
        self._asked: list[tuple[str, AlertNotification]] = []

    def took(self, service: str) -> list[AlertNotification]:
        """Return what was taken about a service, in the order of arrival."""
        return [news for _, news in list(self._taken) if news.alert.service == service]

    def ids(self, service: str) -> list[str]:
        """Return the idempotency keys of all posts about a service, those that were not taken, too."""
        return [number for number, news in list(self._asked) if news.alert.service == service]

    def take(self, body: bytes, headers: dict[str, str]) -> int:
        """Check a post, keep it, and return the status."""
        news = verify_alert(body, headers, self._key.public)
        self._asked.append((headers["idempotency-key"], news))
        status = self._answer(news)
        if status == OK:
            self._taken.append((headers["idempotency-key"], news))
        return status


@contextmanager
def receiving(receiver: Receiver, port: int = 0) -> Iterator[Receiver]:
    """Receive on a port; a free one when left out."""

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
            """Say nothing."""

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

"""Retries in a status whose admin API is missing, slow or answers nonsense."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from perdure._runtime.admin_url import served_to
from perdure.saga import retried
from perdure.saga.retried import retries_for_status


@contextmanager
def admin_api(answer: bytes | None) -> Iterator[str]:
    """Serve an admin API that gives one answer to its first request, or None for no answer."""

    def respond() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer or b"")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=respond)
        if answer is not None:
            thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        if answer is not None:
            thread.join()


def _response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    "answer", [None, b"no HTTP", _response(b"<html>"), _response(b"[]"), _response(b'{"rows":[{}]}')]
)
async def test_failing_admin_api_makes_retries_unknown(answer, monkeypatch):
    if answer is None:
        monkeypatch.setattr(retried, "ADMIN_TIMEOUT", 0.1)
    with admin_api(answer) as url:
        served_to.set(url)
        assert await retries_for_status("Trips", "t1") == "unknown: the engine's admin API does not answer"


async def test_unknown_admin_url_makes_retries_unknown(monkeypatch):
    monkeypatch.delenv("PERDURE_ADMIN_URL", raising=False)
    assert await retries_for_status("Trips", "t1") == "unknown: PERDURE_ADMIN_URL is not set"

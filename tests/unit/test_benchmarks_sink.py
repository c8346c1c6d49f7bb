"""The benchmark's span receiver accepts requests that arrive in arbitrary pieces."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import sink

bodies = st.lists(st.binary(max_size=60), max_size=6)


class Written:
    """Transport that records written data."""

    def __init__(self) -> None:
        self.answers = b""

    def write(self, data: bytes) -> None:
        self.answers += data


def post(body: bytes) -> bytes:
    return b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@given(bodies, st.lists(st.integers(1, 40), min_size=1, max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sink_counts_body_bytes_and_answers_requests(monkeypatch: pytest.MonkeyPatch, sent, cuts):
    monkeypatch.setattr(sink._Sink, "taken", 0)
    stream = b"".join(map(post, sent)) + b"GET / HTTP/1.1\r\n\r\n"
    connection, transport = sink._Sink(), Written()
    connection.connection_made(cast("sink.asyncio.BaseTransport", transport))
    while stream:
        for size in cuts:
            piece, stream = stream[:size], stream[size:]
            connection.data_received(piece)
    total = sum(map(len, sent))
    assert sink._Sink.taken == total
    assert transport.answers.count(b"HTTP/1.1 200 OK") == len(sent) + 1
    assert transport.answers.endswith(b"\r\n\r\n%d" % total)

"""Load generator: clients that send one saga after the other.

Each client uses a minimal HTTP/1.1 implementation and one connection. Engine, services and load share the cores, and a
complete HTTP client would use more CPU than the saga.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Self
from urllib.parse import urlsplit

from perdure.errors import PerdureError

_ANSWER_WITHIN: Final = timedelta(seconds=30)


class BenchmarkError(PerdureError):
    """A failure that invalidates the results."""


@dataclass(frozen=True)
class Saga:
    """A saga to send and its expected response.

    Args:
        ingress: Address of the engine's ingress.
        workflow: The workflow's name.
        body: Body of the request.
        answer: Expected body of the response.
    """

    ingress: str
    workflow: str
    body: bytes
    answer: bytes


@dataclass(frozen=True)
class Load:
    """Measurements of the clients.

    Args:
        seconds: Time from the first request to the last response.
        latencies: Latency of each saga in seconds.
        busy: CPU use of this process as a share of one core; near 1, the load generator limits the throughput.
    """

    seconds: float
    latencies: list[float] = field(repr=False)
    busy: float


async def drive(saga: Saga, keys: Iterator[str], *, clients: int, duration: timedelta) -> Load:
    """Send sagas for a duration.

    Args:
        saga: The saga.
        keys: Unused workflow keys.
        clients: Number of concurrent clients.
        duration: Time after which no saga starts.

    Returns:
        The measurements.

    Raises:
        BenchmarkError: A response was wrong, or did not arrive within 30 s.
    """
    connections = [await _Connection.open(saga.ingress) for _ in range(clients)]
    latencies: list[float] = []
    try:
        began, cpu_began = time.perf_counter(), time.process_time()
        until = began + duration.total_seconds()
        clients_at_work = [asyncio.create_task(_client(each, saga, keys, until, latencies)) for each in connections]
        await _all_done(clients_at_work, within=duration + _ANSWER_WITHIN)
        seconds = time.perf_counter() - began
        busy = (time.process_time() - cpu_began) / seconds
    finally:
        for connection in connections:
            connection.close()
    return Load(seconds, latencies, busy)


async def _all_done(tasks: list[asyncio.Task[None]], *, within: timedelta) -> None:
    """Wait for all tasks or the first failure, and end all tasks."""
    try:
        _, late = await asyncio.wait(tasks, timeout=within.total_seconds(), return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
    failures = await asyncio.gather(*tasks, return_exceptions=True)
    for failure in failures:
        if isinstance(failure, Exception):
            raise failure
    if late:
        limit = _ANSWER_WITHIN.total_seconds()
        raise BenchmarkError(f"sagas that had no answer within {limit:g} s: {len(late)}")


async def _client(
    connection: _Connection, saga: Saga, keys: Iterator[str], until: float, latencies: list[float]
) -> None:
    while (sent := time.perf_counter()) < until:
        status, answer = await connection.post(f"/{saga.workflow}/{next(keys)}/run", saga.body)
        latencies.append(time.perf_counter() - sent)
        if status != 200 or answer != saga.answer:
            raise BenchmarkError(f"a saga of {saga.workflow} was answered {status} {answer[:300]!r}")


class _Connection:
    """A persistent connection to the ingress."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> Self:
        address = urlsplit(url)
        try:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
        except OSError as error:
            raise BenchmarkError(f"the ingress at {url} doesn't answer: {error.strerror}") from error
        return cls(address.netloc, reader, writer)

    def close(self) -> None:
        self._writer.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body of the response."""
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        try:
            status_line, *fields = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            length = next(field[15:] for field in fields if field.startswith(b"content-length:"))
            return int(status_line.split()[1]), await self._reader.readexactly(int(length))
        except (StopIteration, asyncio.IncompleteReadError, ConnectionError) as error:
            raise BenchmarkError(f"the ingress broke off an answer to {path}: {error!r}") from error

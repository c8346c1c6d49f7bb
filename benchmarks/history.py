"""Synthetic history: finished sagas in an engine, many times faster than real ones.

A saga leaves the rows of a confirmed trip: its orchestration with three recorded steps, and four invocations of the
data plane. The handlers' responses are recorded from the SDK once and repeated for all invocations.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import restate
from restate.serde import BytesSerde

from benchmarks.load import BenchmarkError
from perdure._runtime.asgi import ASGIApp, Message, Receive, Scope, Send
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.ingress import IngressClient
from perdure.saga.schema import CLOSED_PREFIX, step_key
from perdure.saga.status import SagaPhase
from perdure.serving import build_app
from perdure.serving.server import listening
from perdure.targets import Target

SERVICE: Final = "HistoricTrips"
"""The workflow of the synthetic sagas."""
WRITES_SERVICE: Final = "HistoricWrites"
"""The data plane of the synthetic sagas."""

_WRITES: Final = ("reserve", "book", "charge", "notify")
_STEPS: Final = 3
_BATCH: Final = 500
_MAX_OPEN: Final = 4_000
_POLL: Final = 0.1
_LIMIT: Final = timedelta(minutes=30)
_VALUE: Final = b'{"position":1,"step":"flight","payload":"' + b"x" * 250 + b'"}'
_BYTES: Final = BytesSerde()

_fill = Target("HistoryWriter", "fill", tuple[str, int, int], None)


class SyntheticHistory:
    """Writes finished sagas into one engine.

    Args:
        admin: The engine.
        ingress: Its ingress.
        prefix: The prefix of the sagas' keys.
    """

    def __init__(self, admin: AdminClient, ingress: IngressClient, prefix: str) -> None:
        self._admin = admin
        self._ingress = ingress
        self._prefix = prefix
        self.size = 0

    async def grow_to(self, size: int) -> None:
        """Add finished sagas until there are as many as given.

        Raises:
            BenchmarkError: The engine has not run them within 30 minutes.
        """
        give_up = time.monotonic() + _LIMIT.total_seconds()
        while self.size < size or await self._open():
            if time.monotonic() > give_up:
                raise BenchmarkError(f"{await self._open()} synthetic invocations have not ended within {_LIMIT}")
            if self.size < size and await self._open() < _MAX_OPEN:
                count = min(_BATCH, size - self.size)
                await self._ingress.call(_fill, (self._prefix, self.size, count))
                self.size += count
            else:
                await asyncio.sleep(_POLL)

    async def _open(self) -> int:
        rows = await self._admin.query(
            f"select count(*) as number from sys_invocation_status where status != 'completed' "  # noqa: S608 - quoted
            f"and target_service_name in ({sql_text(SERVICE)}, {sql_text(WRITES_SERVICE)})"
        )
        return int(rows[0]["number"])


@asynccontextmanager
async def synthetic_history(
    admin: AdminClient, ingress: IngressClient, *, prefix: str = "history", keep_writes: bool = True
) -> AsyncIterator[SyntheticHistory]:
    """Serve the handlers of synthetic sagas while the context is active.

    Args:
        admin: The engine.
        ingress: Its ingress.
        prefix: The prefix of the sagas' keys, unused so far.
        keep_writes: Whether the engine retains invocations of the data plane, as it does by default.
    """
    async with listening(_Recorded(build_app(*_definitions(keep_writes))), http="2") as listener:
        await admin.register(listener.url)
        yield SyntheticHistory(admin, ingress, prefix)


def _definitions(keep_writes: bool) -> list[restate.Workflow | restate.Service]:
    trips = restate.Workflow(SERVICE)
    retention = None if keep_writes else timedelta(0)
    writes = restate.Service(WRITES_SERVICE, journal_retention=retention)
    writer = restate.Service("HistoryWriter")

    @trips.main(name="run")
    async def run(ctx: restate.WorkflowContext) -> None:
        for position, write in enumerate(_WRITES, 1):
            if position <= _STEPS:
                ctx.set(step_key(position), _VALUE, serde=_BYTES)
            ctx.generic_send(WRITES_SERVICE, write, _VALUE)
        ctx.set(CLOSED_PREFIX + SagaPhase.COMPLETED, b"{}", serde=_BYTES)

    for name in _WRITES:

        @writes.handler(name=name, input_serde=_BYTES)
        async def write(_: restate.Context, request: bytes) -> None:
            del request

    @writer.handler(name="fill")
    async def fill(ctx: restate.Context, batch: list[object]) -> None:
        prefix, first, count = batch
        assert isinstance(first, int) and isinstance(count, int)  # noqa: S101, PT018 - for the type checkers
        for number in range(first, first + count):
            ctx.generic_send(SERVICE, "run", b"", key=f"{prefix}-{number}")

    return [trips, writes, writer]


class _Recorded:
    """ASGI middleware that repeats the first response of each synthetic handler."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._responses: dict[str, asyncio.Future[list[Message]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        path = scope.get("path", "")
        if not path.startswith((f"/invoke/{SERVICE}/", f"/invoke/{WRITES_SERVICE}/")):
            await self._app(scope, receive, send)
            return
        if (response := self._responses.get(path)) is None:
            response = self._responses[path] = asyncio.get_running_loop().create_future()
            messages: list[Message] = []

            async def record(message: Message) -> None:
                messages.append(dict(message))
                await send(message)

            await self._app(scope, receive, record)
            response.set_result(messages)
            return
        for message in await response:
            await send(dict(message))

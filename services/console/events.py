"""Server-sent events: streams that poll the engine and send changes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NamedTuple

from fastapi import Request
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from services.console.auth.sessions import Session
from services.console.auth.users import utc_now
from services.console.dependencies import Components
from services.console.problems import ConsoleError

EVENT_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
"""The OpenAPI documentation of a stream."""

_PING_SECONDS = 15
_SEND_TIMEOUT = 30  # seconds; a client that stops reading frees its slot
_SESSION_CHECK_POLLS = 20


class Poll(NamedTuple):
    """The result of one poll: the data by event name, and whether it is final."""

    events: dict[str, str]
    is_final: bool = False


class Unavailable(BaseModel):
    """The data of the event `unavailable`: the engine does not respond, so the last data may be outdated.

    Args:
        code: For programs, for example ``engine_down``.
        message: For users.
        as_of: The time of the last successful poll of this stream.
    """

    code: str
    message: str
    as_of: datetime | None


def digest(data: str) -> str:
    """Return the digest by which a client names the data that it shows."""
    return hashlib.sha256(data.encode()).hexdigest()[:24]


def stream(
    request: Request,
    components: Components,
    session: Session,
    poll: Callable[[], Awaitable[Poll]],
    *,
    seen: Iterable[str] = (),
) -> EventSourceResponse:
    """Return a stream with an event per change, until a final poll, the end of the session, or a disconnect.

    While the engine does not respond, one event `unavailable` says why; `available` follows.

    Args:
        request: The request.
        components: The components.
        session: The session.
        poll: Polls once. Unchanged data is not sent again.
        seen: Digests of the data that the client shows. It is not sent, since a swap would discard input of the user.
    """

    async def events() -> AsyncIterator[ServerSentEvent]:
        sent: dict[str, str] = {}
        # The ID of an event lists the digests of the fragments on the page; a reconnecting client sends it back.
        last = request.headers.get("last-event-id")
        shown = set(last.split(".") if last else seen)
        polls = unchanged = 0
        as_of: datetime | None = None
        failure: str | None = None
        interval = components.settings.watch_interval.total_seconds()
        while not await request.is_disconnected():
            polls += 1
            if polls % _SESSION_CHECK_POLLS == 0 and not await components.sessions.is_active(session):
                yield ServerSentEvent("the session has ended", event="end")
                return
            try:
                current = await poll()
            except ConsoleError as error:
                if error.status < 500:
                    yield ServerSentEvent(error.message, event="end")
                    return
                current = None
                if failure != error.message:
                    failure = error.message
                    outage = Unavailable(code=error.problem.code, message=failure, as_of=as_of)
                    yield ServerSentEvent(outage.model_dump_json(), event="unavailable")
            if current is not None:
                as_of = utc_now()
                if failure is not None:
                    failure = None
                    yield ServerSentEvent(as_of.isoformat(), event="available")
                changes = _changes(current, sent, shown)
                unchanged = 0 if changes else unchanged + 1
                for name, data in changes.items():
                    sent[name] = data
                    yield ServerSentEvent(data, event=name, id=".".join(map(digest, sent.values())))
                if current.is_final:
                    yield ServerSentEvent("final", event="end")
                    return
            # Poll less often without changes.
            await asyncio.sleep(interval * min(4, 1 + unchanged // 20))

    return _CountedStream(components, session, events())


class _CountedStream(EventSourceResponse):
    """A stream that counts towards the limits while it is served."""

    def __init__(self, components: Components, session: Session, events: AsyncIterator[ServerSentEvent]) -> None:
        headers = {"x-accel-buffering": "no"}
        super().__init__(events, ping=_PING_SECONDS, send_timeout=_SEND_TIMEOUT, headers=headers)
        self._limits = components.stream_limits
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream.

        Raises:
            ConsoleError: Too many streams are open.
        """
        with self._limits.opened(self._session), suppress(SendTimeoutError):
            await super().__call__(scope, receive, send)


def _changes(current: Poll, sent: dict[str, str], shown: set[str]) -> dict[str, str]:
    """Return the data that the client does not show. Data that it already shows counts as sent."""
    for name, data in current.events.items():
        if name not in sent and digest(data) in shown:
            sent[name] = data
    return {name: data for name, data in current.events.items() if sent.get(name) != data}

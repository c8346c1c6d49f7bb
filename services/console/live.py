"""What moves, as server-sent events: a saga, and what is wrong."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from fastapi import Request
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from services.console.parts import Parts
from services.console.people.persons import utc_now
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError
from services.console.reads import sagas
from services.console.reads.sagas import Saga

_PING_SECONDS = 15
_READS_WITHIN = 30  # seconds; who reads no slower may go on, and who reads nothing holds no place
_SESSION_LOOKED_AT_EVERY = 20


class Look(NamedTuple):
    """What was seen at one look.

    Args:
        events: The data of each event, by name.
        is_over: Whether nothing will move any more.
    """

    events: dict[str, str]
    is_over: bool = False


class Away(BaseModel):
    """What a stream says as long as nobody can look: what was sent last may be old.

    Args:
        code: For programs, for example ``engine_down``.
        message: For people.
        as_of: When somebody could look last; None when this stream never could.
    """

    code: str
    message: str
    as_of: datetime | None


def digest(data: str) -> str:
    """Return what tells equal parts of a page apart from others.

    Args:
        data: The part.
    """
    return hashlib.sha256(data.encode()).hexdigest()[:24]


def watch(
    request: Request,
    parts: Parts,
    signed_in: SignedIn,
    look: Callable[[], Awaitable[Look]],
    *,
    seen: Iterable[str] = (),
) -> EventSourceResponse:
    """Return a stream with an event at each change, until all is over, the session ends, or the client goes.

    When nobody can look, an event `away` says why and of when what was sent is (see `Away`); `back` ends that.

    Args:
        request: The request.
        parts: The console's parts.
        signed_in: Who watches.
        look: Looks once; what is as it was is not sent again.
        seen: Digests of what the client shows already. What it has is not sent either: swapped in, it would take away
            what somebody has begun to type.
    """

    async def events() -> AsyncIterator[ServerSentEvent]:
        sent: dict[str, str] = {}
        # Who was cut off says what they show by now, which may be more than they began with.
        last = request.headers.get("last-event-id")
        shown = set(last.split(".") if last else seen)
        looks = quiet = 0
        as_of: datetime | None = None
        away: str | None = None
        interval = parts.settings.watch_interval.total_seconds()
        while not await request.is_disconnected():
            looks += 1
            if looks % _SESSION_LOOKED_AT_EVERY == 0 and not await parts.sessions.still(signed_in):
                yield ServerSentEvent("the session has ended", event="end")
                return
            try:
                found = await look()
            except ConsoleError as problem:
                if problem.status < 500:
                    yield ServerSentEvent(problem.message, event="end")
                    return
                found = None  # the engine is away: it is asked again
                if away != problem.message:
                    away = problem.message
                    told = Away(code=problem.problem.code, message=away, as_of=as_of)
                    yield ServerSentEvent(told.model_dump_json(), event="away")
            if found is not None:
                as_of = utc_now()
                if away is not None:
                    away = None
                    yield ServerSentEvent(as_of.isoformat(), event="back")
                fresh = _fresh(found, sent, shown)
                quiet = 0 if fresh else quiet + 1
                for name, data in fresh.items():
                    sent[name] = data
                    yield ServerSentEvent(data, event=name, id=".".join(map(digest, sent.values())))
                if found.is_over:
                    yield ServerSentEvent("over", event="end")
                    return
            # What has not moved for a while is looked at less often.
            await asyncio.sleep(interval * min(4, 1 + quiet // 20))

    return _CountedStream(parts, signed_in, events())


class _CountedStream(EventSourceResponse):
    """A stream that counts as open as long as it is served, to whatever end it comes."""

    def __init__(self, parts: Parts, signed_in: SignedIn, events: AsyncIterator[ServerSentEvent]) -> None:
        headers = {"x-accel-buffering": "no"}
        super().__init__(events, ping=_PING_SECONDS, send_timeout=_READS_WITHIN, headers=headers)
        self._parts = parts
        self._signed_in = signed_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it.

        Raises:
            ConsoleError: Too many are open.
        """
        with self._parts.streams.opened(self._signed_in), suppress(SendTimeoutError):
            await super().__call__(scope, receive, send)


def _fresh(found: Look, sent: dict[str, str], shown: set[str]) -> dict[str, str]:
    """Return what the client does not show, by name; what it shows from before counts as sent."""
    for name, data in found.events.items():
        if name not in sent and digest(data) in shown:
            sent[name] = data
    return {name: data for name, data in found.events.items() if sent.get(name) != data}


def watch_saga(
    request: Request,
    parts: Parts,
    signed_in: SignedIn,
    saga_id: str,
    *,
    service: str | None,
    render: Callable[[Saga], Awaitable[dict[str, str]]],
    seen: Iterable[str] = (),
) -> EventSourceResponse:
    """Return a stream with an event at each change of a saga, until it is over; see `watch`.

    Args:
        request: The request.
        parts: The console's parts.
        signed_in: Who watches.
        saga_id: The saga.
        service: Its service, when several have a saga of this id.
        render: Makes the events, by name.
        seen: Digests of what the client shows already.
    """

    async def look() -> Look:
        saga = await sagas.one(parts.engine, saga_id, service)
        return Look(await render(saga), saga.is_over)

    return watch(request, parts, signed_in, look, seen=seen)

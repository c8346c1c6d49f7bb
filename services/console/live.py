"""What moves, as server-sent events: a saga, and what is wrong."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import NamedTuple

from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent

from services.console.parts import Parts
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError
from services.console.reads import sagas
from services.console.reads.sagas import Saga

_PING_SECONDS = 15
_SESSION_LOOKED_AT_EVERY = 20


class Look(NamedTuple):
    """What was seen at one look.

    Args:
        events: The data of each event, by name.
        is_over: Whether nothing will move any more.
    """

    events: dict[str, str]
    is_over: bool = False


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
        shown = set(seen)
        looks = quiet = 0
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
            if found is not None:
                fresh = {
                    name: data
                    for name, data in found.events.items()
                    if sent.get(name) != data and (name in sent or digest(data) not in shown)
                }
                quiet = 0 if fresh else quiet + 1
                for name, data in fresh.items():
                    yield ServerSentEvent(data, event=name)
                sent.update(found.events)
                if found.is_over:
                    yield ServerSentEvent("over", event="end")
                    return
            # What has not moved for a while is looked at less often.
            await asyncio.sleep(interval * min(4, 1 + quiet // 20))

    return EventSourceResponse(events(), ping=_PING_SECONDS, headers={"x-accel-buffering": "no"})


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

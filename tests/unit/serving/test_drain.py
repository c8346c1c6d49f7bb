"""Draining in plain ASGI. tests/integration/test_serving_stop.py tests it with an engine."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from datetime import timedelta
from types import MethodType
from typing import cast

from perdure._runtime.asgi import ASGIApp, Message, Receive, Scope, Send
from perdure.serving import Drain
from tests.support import PATIENCE, eventually

CHUNK = {"type": "http.request", "body": b"in", "more_body": True}
END = {"type": "http.request", "body": b"", "more_body": False}
GONE = {"type": "http.disconnect"}
START = {"type": "http.response.start", "status": 200, "headers": []}
LAST = {"type": "http.response.body", "body": b"", "more_body": False}
MOMENT = timedelta(milliseconds=10)


class Stream:
    """Server side of a request."""

    def __init__(self, path: str = "/invoke/Trips/run") -> None:
        self.scope: Scope = {"type": "http", "path": path}
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self.task: asyncio.Task[None] | None = None

    def open(self, app: ASGIApp) -> asyncio.Task[None]:
        async def send(message: Message) -> None:
            self.sent.append(message)

        async def call() -> None:
            await app(self.scope, self.incoming.get, send)

        self.task = asyncio.create_task(call())
        return self.task


class Attempt:
    """App like the SDK's: reads its input to the end, waits for a side effect, then responds."""

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.step_done = asyncio.Event()
        self.cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            while not self.received or self.received[-1].get("more_body"):
                self.received.append(await receive())
            await self.step_done.wait()
        except asyncio.CancelledError:
            self.cancelled = True
        await send({"type": "http.response.body", "body": b"result", "more_body": True})
        await send(LAST)


async def until(condition: Callable[[], bool]) -> None:
    async def probe() -> bool:
        return condition()

    await eventually(probe, what="such state")


async def settled() -> None:
    """Run all tasks that are ready."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_attempt_receives_input_in_order():
    app, stream = Attempt(), Stream()
    drain = Drain(app)
    task = stream.open(drain)
    events = [CHUNK, {**CHUNK, "body": b"more"}, END]
    for event in events:
        stream.incoming.put_nowait(event)
    app.step_done.set()

    await asyncio.wait_for(task, PATIENCE)

    assert app.received == events
    assert [message.get("body") for message in stream.sent] == [None, b"result", b""]
    assert drain.open_attempts == 0


async def test_drain_without_attempts_ends_at_once():
    assert await asyncio.wait_for(Drain(Attempt()).drain(timedelta(hours=1)), PATIENCE) == []


async def test_refuse_attempt_while_draining():
    drain = Drain(Attempt())
    await drain.drain(MOMENT)
    stream = Stream()
    task = stream.open(drain)
    await settled()

    assert drain.draining
    assert [message.get("status") for message in stream.sent] == [503, None]
    assert stream.sent[1]["more_body"] is True, "granian sends the status with the first chunk"
    assert not task.done()
    stream.incoming.put_nowait(CHUNK)
    stream.incoming.put_nowait(END)
    await asyncio.wait_for(task, PATIENCE)
    assert stream.sent[-1] == LAST


async def test_drain_ends_input_and_holds_end_of_response():
    app, stream = Attempt(), Stream()
    drain = Drain(app, settle=MOMENT)
    task = stream.open(drain)
    stream.incoming.put_nowait(CHUNK)
    draining = asyncio.create_task(drain.drain(timedelta(seconds=5)))
    await until(lambda: app.received == [CHUNK, END])

    app.step_done.set()
    await settled()
    assert stream.sent[-1]["body"] == b"result", "the step's result goes out"
    assert stream.sent[-1]["more_body"] is True
    assert not task.done()
    assert not draining.done()
    stream.incoming.put_nowait(END)

    await asyncio.wait_for(task, PATIENCE)
    assert stream.sent[-1] == LAST
    assert await asyncio.wait_for(draining, PATIENCE) == []


async def test_final_content_is_sent_before_the_end():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        await send({"type": "http.response.body", "body": b"suspended", "more_body": False})

    stream = Stream()
    drain = Drain(app, settle=MOMENT)
    task = stream.open(drain)
    draining = asyncio.create_task(drain.drain(timedelta(seconds=5)))
    await until(lambda: len(stream.sent) == 2)

    assert stream.sent[1] == {"type": "http.response.body", "body": b"suspended", "more_body": True}
    stream.incoming.put_nowait(END)
    await asyncio.wait_for(task, PATIENCE)
    assert stream.sent[-1] == LAST
    await draining


async def test_drain_ignores_attempt_with_ended_request():
    """Over HTTP/1.1, the input ends at the start, so the drain must not end it again."""
    app, stream = Attempt(), Stream()
    drain = Drain(app, settle=MOMENT)
    task = stream.open(drain)
    stream.incoming.put_nowait(END)
    await settled()
    draining = asyncio.create_task(drain.drain(timedelta(seconds=5)))
    await asyncio.sleep(MOMENT.total_seconds() * 3)
    app.step_done.set()

    await asyncio.wait_for(task, PATIENCE)
    assert app.received == [END]
    assert stream.sent[-1] == LAST
    assert await draining == []


async def test_disconnect_reaches_attempt_while_draining():
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not seen or seen[-1] != GONE:
            seen.append(await receive())

    stream = Stream()
    drain = Drain(app, settle=MOMENT)
    task = stream.open(drain)
    draining = asyncio.create_task(drain.drain(timedelta(seconds=5)))
    await until(lambda: seen == [END])
    stream.incoming.put_nowait(CHUNK)
    stream.incoming.put_nowait(GONE)

    await asyncio.wait_for(task, PATIENCE)
    assert seen == [END, GONE], "input after the announced end isn't passed on"
    assert await draining == []


async def test_attempt_is_abandoned_after_grace_time():
    apps, streams = [Attempt(), Attempt(), Attempt()], []
    drains = iter(apps)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await next(drains)(scope, receive, send)

    drain = Drain(app, settle=MOMENT)
    for path in ("/invoke/Trips/run", "/some/prefix/invoke/Flights/reserve", "/invoke/Trips/run"):
        streams.append(Stream(path))
        streams[-1].open(drain)
    await settled()

    abandoned = await asyncio.wait_for(drain.drain(2 * MOMENT), PATIENCE)

    assert abandoned == ["Flights/reserve", "Trips/run", "Trips/run"]
    assert all(app.cancelled for app in apps)
    assert all(stream.sent == [START] for stream in streams), "output after the cancellation is dropped"
    assert drain.open_attempts == 0


async def test_drain_ends_despite_uncancellable_attempt():
    stay = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not stay.is_set():
            try:
                await stay.wait()
            except asyncio.CancelledError:
                continue

    stream = Stream()
    drain = Drain(app, settle=MOMENT)
    task = stream.open(drain)
    await settled()

    assert await asyncio.wait_for(drain.drain(MOMENT), PATIENCE) == ["Trips/run"]
    assert not task.done()
    stay.set()
    await task


async def test_second_request_ends_grace_time():
    drain = Drain(Attempt())
    Stream().open(drain)
    await settled()
    hurry = asyncio.Event()
    draining = asyncio.create_task(drain.drain(timedelta(hours=1), hurry))
    await settled()
    assert not draining.done()

    hurry.set()

    assert await asyncio.wait_for(draining, PATIENCE) == ["Trips/run"]


async def test_error_of_attempt_reaches_server():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("broken")

    drain = Drain(app)
    (outcome,) = await asyncio.gather(Stream().open(drain), return_exceptions=True)

    assert isinstance(outcome, ValueError)
    assert drain.open_attempts == 0


async def test_attempt_leaves_no_reference_cycles():
    left: list[weakref.ref[object]] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        left.append(weakref.ref(cast("MethodType", receive).__self__))
        await send(LAST)

    stream = Stream()
    gc.disable()
    try:
        task = stream.open(Drain(app))
        stream.incoming.put_nowait(CHUNK)
        await asyncio.wait_for(task, PATIENCE)
        await settled()
        assert [each() for each in left] == [None]
    finally:
        gc.enable()

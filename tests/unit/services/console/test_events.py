"""Event streams, and their events during an outage of the engine. tests/e2e has the behaviour of browsers."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from services.console.auth.roles import Role
from services.console.events import Poll, digest, stream
from services.console.problems import ConsoleError

DOWN = ConsoleError(503, "engine_down", "connection refused")
BUSY = ConsoleError(504, "timeout", "no response within 15 s")
MISSING = ConsoleError(404, "not_found", "no such saga")


@pytest.mark.parametrize("path", ["/sagas", "/approvals"])
async def test_htmx_error_replaces_problem_area(console, path):
    token = await console.add("ada@example.com", Role.VIEWER)
    async with console.client(cookies={"perdure-console": token}) as client:
        answer = await client.get(path, headers={"hx-request": "true"})
    assert answer.status_code == 503
    assert "heck that the engine is running" in answer.text
    assert answer.headers["hx-retarget"] == "#problems"
    assert answer.headers["hx-reselect"] == "unset"


class Client:
    """A client of a stream with the given results of polls."""

    def __init__(self, *polls: Poll | ConsoleError, headers: dict[str, str] | None = None) -> None:
        self._polls = iter(polls)
        self.headers = headers or {}
        self.last = ""

    async def is_disconnected(self) -> bool:
        return False

    async def _poll(self) -> Poll:
        found = next(self._polls)
        if isinstance(found, ConsoleError):
            raise found
        return found

    async def events(self, *shown: str) -> list[tuple[str, Any]]:
        """Return the events for a page that already shows some data."""
        settings = SimpleNamespace(watch_interval=timedelta(0))
        components: Any = SimpleNamespace(settings=settings, sessions=None, stream_limits=None)
        session: Any = None
        request: Any = self
        response = stream(request, components, session, self._poll, seen=map(digest, shown))
        events = []
        async for event in response.body_iterator:
            sent: Any = event
            events.append((str(sent.event), sent.data))
            self.last = sent.id or self.last
        return events


def poll(data: str, *, is_final: bool = False) -> Poll:
    return Poll({"saga": data}, is_final)


async def test_outage_is_reported_once():
    client = Client(poll("a"), DOWN, DOWN, BUSY, poll("a"), poll("b"), DOWN, poll("b", is_final=True))
    events = await client.events()
    assert [name for name, _ in events] == [
        "saga",
        "unavailable",
        "unavailable",
        "available",
        "saga",
        "unavailable",
        "available",
        "end",
    ]
    first, second = (json.loads(data) for name, data in events[1:3])
    assert (first["code"], first["message"]) == ("engine_down", "connection refused")
    assert (second["code"], second["message"]) == ("timeout", "no response within 15 s")
    assert first["as_of"] == second["as_of"], "no newer data"
    assert json.loads(events[5][1])["as_of"] > first["as_of"]


async def test_first_poll_during_outage():
    events = await Client(DOWN, poll("a", is_final=True)).events()
    assert [name for name, _ in events] == ["unavailable", "available", "saga", "end"]
    assert json.loads(events[0][1])["as_of"] is None


async def test_reconnected_page_gets_only_changes():
    # The form of an approval was sent before the connection broke, and is decided elsewhere.
    first = Client(Poll({"saga": "running", "approval": ""}), Poll({"saga": "running", "approval": "?"}, is_final=True))
    assert await first.events("running", "") == [("approval", "?"), ("end", "final")]
    again = Client(Poll({"saga": "running", "approval": ""}, is_final=True), headers={"last-event-id": first.last})
    assert await again.events("running", "") == [("approval", ""), ("end", "final")]
    # Data that the page shows is not sent, so input of the user stays.
    same = Client(Poll({"saga": "running", "approval": "?"}, is_final=True), headers={"last-event-id": first.last})
    assert await same.events("running", "") == [("end", "final")]


async def test_missing_saga_ends_the_stream():
    assert (await Client(poll("a"), MISSING).events())[-1] == ("end", "no such saga")


async def test_stream_opens_without_engine(console, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr("services.console.sagas.routes.stream", lambda *_, **options: opened.append("stream"))
    token = await console.add("ada@example.com", Role.VIEWER)
    async with console.client(cookies={"perdure-console": token}) as client:
        await client.get("/sagas/T1/events")
    assert opened == ["stream"]

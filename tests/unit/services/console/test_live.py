"""What a page that renews itself is told when it can't be renewed. tests/e2e has what a browser makes of it."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from services.console.live import Look, digest, watch
from services.console.people.roles import Role

from services.console.problems import ConsoleError

AWAY = ConsoleError(503, "engine_down", "nobody answers")
BUSY = ConsoleError(504, "no_answer", "no answer within 15 s")
GONE = ConsoleError(404, "not_found", "there is no such saga")


@pytest.mark.parametrize("path", ["/sagas", "/approvals"])
async def test_a_problem_goes_where_problems_go_and_not_through_the_polls_own_selection(desk, path):
    token = await desk.add("ada@example.com", Role.VIEWER)
    async with desk.client(cookies={"perdure-console": token}) as client:
        answer = await client.get(path, headers={"hx-request": "true"})
    assert answer.status_code == 503
    assert "is the engine running?" in answer.text
    assert answer.headers["hx-retarget"] == "#problems"
    assert answer.headers["hx-reselect"] == "unset"


class Watched:
    """Somebody who watches what is seen at each look, in order.

    Args:
        *looks: What is seen.
        headers: What they send.
    """

    def __init__(self, *looks: Look | ConsoleError, headers: dict[str, str] | None = None) -> None:
        self._looks = iter(looks)
        self.headers = headers or {}
        self.last = ""

    async def is_disconnected(self) -> bool:
        return False

    async def _look(self) -> Look:
        found = next(self._looks)
        if isinstance(found, ConsoleError):
            raise found
        return found

    async def events(self, *shown: str) -> list[tuple[str, Any]]:
        """Return the events for a page that shows this already."""
        settings = SimpleNamespace(watch_interval=timedelta(0))
        parts: Any = SimpleNamespace(settings=settings, sessions=None)
        signed_in: Any = None
        request: Any = self
        stream = watch(request, parts, signed_in, self._look, seen=map(digest, shown))
        events = []
        async for event in stream.body_iterator:
            told: Any = event
            events.append((str(told.event), told.data))
            self.last = told.id or self.last
        return events


def seen(what: str, *, is_over: bool = False) -> Look:
    return Look({"saga": what}, is_over)


async def test_who_watches_is_told_once_that_nothing_is_known_and_when_it_is_again():
    watched = Watched(seen("a"), AWAY, AWAY, BUSY, seen("a"), seen("b"), AWAY, seen("b", is_over=True))
    events = await watched.events()
    assert [name for name, _ in events] == ["saga", "away", "away", "back", "saga", "away", "back", "end"]
    first, second = (json.loads(data) for name, data in events[1:3])
    assert (first["code"], first["message"]) == ("engine_down", "nobody answers")
    assert (second["code"], second["message"]) == ("no_answer", "no answer within 15 s")
    assert first["as_of"] == second["as_of"], "what is shown has not become newer"
    assert json.loads(events[5][1])["as_of"] > first["as_of"]


async def test_what_was_never_seen_is_of_no_time():
    events = await Watched(AWAY, seen("a", is_over=True)).events()
    assert [name for name, _ in events] == ["away", "back", "saga", "end"]
    assert json.loads(events[0][1])["as_of"] is None


async def test_a_page_that_was_cut_off_is_sent_what_it_does_not_show_any_more():
    """Opened before anybody asked, it was sent the question, and then cut off; the answer was given elsewhere."""
    asked = Watched(Look({"saga": "runs", "approval": ""}), Look({"saga": "runs", "approval": "?"}, is_over=True))
    assert await asked.events("runs", "") == [("approval", "?"), ("end", "over")]
    again = Watched(Look({"saga": "runs", "approval": ""}, is_over=True), headers={"last-event-id": asked.last})
    assert await again.events("runs", "") == [("approval", ""), ("end", "over")]
    # What somebody has typed there stays: what it shows is not sent again.
    same = Watched(Look({"saga": "runs", "approval": "?"}, is_over=True), headers={"last-event-id": asked.last})
    assert await same.events("runs", "") == [("end", "over")]


async def test_what_is_not_there_any_more_ends_the_stream_with_a_sentence():
    assert (await Watched(seen("a"), GONE).events())[-1] == ("end", "there is no such saga")


async def test_a_saga_that_is_watched_without_an_engine_is_told_of_as_soon_as_there_is_one(desk, monkeypatch):
    """A stream that is refused, the browser opens again after ever longer whiles; one that is open tells at once."""
    begun: list[str] = []
    monkeypatch.setattr("services.console.pages.sagas.watch_saga", lambda *_, **options: begun.append("watching"))
    token = await desk.add("ada@example.com", Role.VIEWER)
    async with desk.client(cookies={"perdure-console": token}) as client:
        await client.get("/sagas/T1/live")
    assert begun == ["watching"]

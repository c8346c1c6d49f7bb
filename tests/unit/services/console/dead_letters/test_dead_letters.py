"""Bulk actions apply to the dead letters shown; payloads are compared within bounds.

The engine is faked, since changes between a page and an action would be a race. tests/e2e has the real pages.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.saga.dead_letter_index import FoundContents, ListedLetter, Selected, Selection, select_from
from perdure.saga.dead_letters import contents_of_page, page_of, selection_of
from perdure.saga.messages import MAX_PAGE, DeadLetter, DeadLetterFilter, DeadLetterListRequest
from perdure.saga.schema import OperatorAction
from services.console.alert_count import AlertCount
from services.console.auth.roles import Role
from services.console.dead_letters import service
from services.console.dead_letters.payloads import MAX_CHARACTERS, MAX_LINES, DiffLine, diff, format_payload, parse
from services.console.engine import EngineClient
from services.console.problems import ConsoleError

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
OPERATOR = "olga@example.com"


def letter(saga_id: str, **changes: Any) -> DeadLetter:
    values = {"service": "Trips", "step": "hotel", "position": 2, "compensation": "Hotels/cancel", "error": "boom"}
    values |= {"signature": "boom", "reason": "no money", "attempts": 2, "since": START, "payload": {"trip": saga_id}}
    return DeadLetter(id=f"{saga_id}/2", saga_id=saga_id, **{**values, **changes})


class Letters:
    """An engine with dead letters, which records actions."""

    def __init__(self, *letters: DeadLetter) -> None:
        self.letters = list(letters)
        self.listed: list[dict[str, Any]] = []
        self.actions: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/query":  # the number of alerts in the navigation
            return httpx.Response(200, json={"rows": []})
        body = json.loads(request.content) if request.content else {}
        if request.url.path == "/restate/call/DeadLetters/list":
            self.listed.append(body)
            return httpx.Response(200, json=self._page(body))
        if request.url.path.endswith("/status"):
            body = {
                "saga_id": "T1",
                "execution": "T1@1",
                "service": "Trips",
                "status": "needs_attention",
                "strategy": "reverse",
            }
            body |= {"reason": "no money", "started_at": str(START), "updated_at": str(START), "steps": []}
            return httpx.Response(200, json=body)
        assert request.url.path == "/restate/call/DeadLetters/act_on_many"
        self.actions.append(body)
        batch = self._select(DeadLetterFilter(**body["filter"]), MAX_PAGE, body["after"], body["until"])
        ids = [ListedLetter.parse(cursor).id for cursor in batch.cursors]
        receipt = {"done": [each for each in ids if each in body["signed_actions"]], "until": body["until"]}
        receipt |= {"refused": {each: "unsigned" for each in ids if each not in body["signed_actions"]}}
        return httpx.Response(200, json=receipt)

    def _select(self, wanted: DeadLetterFilter, limit: int, after: str | None, until: str | None) -> Selected:
        cursors = sorted(ListedLetter.of(each).cursor for each in self.letters)
        return select_from(cursors, Selection(filter=wanted, after=after, until=until, limit=limit))

    def _page(self, body: dict[str, Any]) -> dict[str, Any]:
        request = DeadLetterListRequest(**body)
        selected = select_from(sorted(ListedLetter.of(each).cursor for each in self.letters), selection_of(request))
        by_cursor = {ListedLetter.of(each).cursor: each for each in self.letters}
        contents = contents_of_page(request, selected)
        found = FoundContents(
            letters={each: by_cursor[each] for each in contents.letters},
            signatures={each: by_cursor[each].signature for each in contents.signatures},
        )
        return page_of(request, selected, contents, found).model_dump(mode="json")

    def done(self) -> list[tuple[str, dict[str, str], list[str]]]:
        """Return the actions: the name, the filter, and the signed IDs."""
        return [
            (
                each["action"],
                {name: value for name, value in each["filter"].items() if value},
                sorted(each["signed_actions"]),
            )
            for each in self.actions
        ]


@pytest.fixture
def client_with(open_console):
    """Return a function that opens a console with dead letters, and a client with a role."""

    @asynccontextmanager
    async def opened(letters: Letters, role: Role = Role.OPERATOR):
        async with open_console() as console, httpx.AsyncClient(transport=httpx.MockTransport(letters)) as http:
            engine = EngineClient("http://ingress.test", "http://admin.test", http)
            console.app.state.components = dataclasses.replace(
                console.components, engine=engine, alert_count=AlertCount(engine)
            )
            token = await console.add(OPERATOR, role)
            async with console.client(headers={"authorization": f"Bearer {token}"}) as client:
                yield client

    return opened


def forms(html: str) -> list[dict[str, str]]:
    """Return the hidden fields of the bulk action forms, without the CSRF token."""
    found = re.findall(r'<form class="inline" method="post" action="/dead-letters">(.*?)</form>', html, re.DOTALL)
    fields = [dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)) for form in found]
    return [{name: unescape(value) for name, value in form.items() if name != "csrf"} for form in fields]


def batch_form(html: str) -> dict[str, str] | None:
    """Return the fields of the form that continues a bulk action; None after the last batch."""
    found = re.search(r'<form method="post" action="/dead-letters" hx-post.*?</form>', html, re.DOTALL)
    if found is None:
        return None
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', found[0])
    return {name: unescape(value) for name, value in fields if name != "csrf"}


THREE_SERVICES = ("Trips", "Parcels", "Parcels", "Orders")


def of_services() -> Letters:
    return Letters(*(letter(f"T{number}", service=service) for number, service in enumerate(THREE_SERVICES)))


async def test_bulk_action_respects_filter(client_with):
    letters = of_services()
    async with client_with(letters) as client:
        html = (await client.get("/dead-letters?service=Parcels")).text
        assert "<strong>2</strong>" in html
        (form,) = forms(html)
        answer = await client.post("/dead-letters", data={**form, "action": "discard", "reason": "refunded"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/dead-letters")
    assert letters.done() == [("discard", {"service": "Parcels", "signature": "boom"}, ["T1/2", "T2/2"])]


async def test_confirmation_names_action_and_group(client_with):
    letters = of_services()
    async with client_with(letters) as client:
        filtered = unescape((await client.get("/dead-letters?service=Parcels&step=hotel")).text)
        one = unescape((await client.get("/dead-letters?service=Orders")).text)
    assert 'data-confirm="Discard all 2 dead letters of boom, service Parcels, step hotel?">Discard all 2<' in filtered
    assert 'data-confirm="Discard the dead letter of boom, service Orders?">Discard<' in one
    for action in OperatorAction:
        assert f'name="action" value="{action.value}"' in one
    assert 'href="/dead-letters?service=Parcels&step=hotel&signature=boom"' in filtered, "keeps the filter"


@pytest.mark.parametrize("change", ["added", "removed", "redriven"])
async def test_bulk_action_rejects_changed_group(client_with, change):
    letters = of_services()
    async with client_with(letters) as client:
        (form,) = forms((await client.get("/dead-letters")).text)
        if change == "added":
            letters.letters.append(letter("late"))
        elif change == "removed":
            del letters.letters[0]
        else:
            letters.letters[0] = letter("T0", redriven=1)
        answer = await client.post("/dead-letters", data={**form, "action": "redrive"})
        assert (answer.status_code, "409 · changed" in answer.text) == (409, True), answer.text
        assert "nothing was done" in answer.text
        assert letters.actions == []

        (form,) = forms((await client.get("/dead-letters")).text)
        assert (await client.post("/dead-letters", data={**form, "action": "redrive"})).status_code == 303
    assert letters.done() == [("redrive", {"signature": "boom"}, sorted(each.id for each in letters.letters))]


async def test_bulk_action_requires_digest(client_with):
    letters = of_services()
    async with client_with(letters) as client:
        answer = await client.post("/dead-letters", data={"action": "redrive", "signature": "boom"})
        nothing = await client.post("/dead-letters", data={"action": "redrive", "service": "Trips", "digest": "0" * 64})
    assert (answer.status_code, nothing.status_code) == (409, 400)
    assert letters.actions == []


async def test_bulk_action_continues_in_batches(client_with):
    letters = Letters(*(letter(f"T{number:03}", signature=f"boom {'ab'[number % 2]}") for number in range(402)))
    async with client_with(letters) as client:
        first, second = forms((await client.get("/dead-letters")).text)
        assert first["digest"] != second["digest"]
        answer = await client.post("/dead-letters", data={**second, "action": "skip", "reason": "no charge"})
        letters.letters.append(letter("late", signature="boom b", since=START + timedelta(days=1)))
        progress = [re.findall(r"<strong>(\d+)</strong> skipped.*?(\d*)(?: remaining)?\.", answer.text)]
        while (form := batch_form(answer.text)) is not None:
            answer = await client.post("/dead-letters", data=form)
            progress.append(re.findall(r"<strong>(\d+)</strong> skipped.*?(\d*)(?: remaining)?\.", answer.text))
    assert progress == [[("100", "101")], [("200", "1")], [("201", "")]]
    assert [len(done) for _, _, done in letters.done()] == [100, 100, 1]
    acted = [each for _, _, done in letters.done() for each in done]
    assert acted == [f"T{number:03}/2" for number in range(1, 402, 2)], "without the late one"
    assert {each["reason"] for each in letters.actions} == {"no charge"}


async def test_pages_are_linked_by_cursor(client_with):
    letters = Letters(*(letter(f"T{number:02}") for number in range(60)))
    async with client_with(letters, Role.VIEWER) as client:
        first = (await client.get("/dead-letters?service=Trips")).text
        (link,) = re.findall(r'href="([^"]*)" rel="next"', first)
        second = (await client.get(unescape(link))).text
    assert (forms(first), "<strong>60</strong>" in first, "10 more" in first) == ([], True, True)
    assert re.findall(r'href="/dead-letters/(\w+)/2"', second) == [f"T{number}" for number in range(50, 60)]
    assert 'rel="next"' not in second
    assert 'href="/dead-letters?service=Trips">First page' in second


async def test_api_bulk_action_rejects_changed_letters(client_with):
    letters = of_services()
    async with client_with(letters) as client:
        seen = (await client.get("/api/dead-letters?service=Parcels")).json()
        body = {"action": "resolve", "filter": {"service": "Parcels"}, "digest": seen["digest"]}
        letters.letters.append(letter("late", service="Parcels"))
        rejected = await client.post("/api/dead-letters", json=body)
        assert (rejected.status_code, rejected.json()["code"], letters.actions) == (409, "changed", [])

        body["digest"] = (await client.get("/api/dead-letters?service=Parcels")).json()["digest"]
        assert (await client.post("/api/dead-letters", json=body)).json()["done"] == ["T1/2", "T2/2", "late/2"]
        # Without a digest, the action applies to those that match now.
        del body["digest"]
        letters.letters.append(letter("later", service="Parcels"))
        assert len((await client.post("/api/dead-letters", json=body)).json()["done"]) == 4
    assert len(letters.actions) == 2


async def test_payloads_are_compared_in_threads(client_with, monkeypatch):
    threads = []

    def compared(*both: Any) -> list[DiffLine]:
        threads.append(threading.current_thread())
        return diff(*both)

    monkeypatch.setattr(service, "diff", compared)
    async with client_with(Letters(letter("T1"))) as client:
        answer = await client.post("/api/dead-letters/T1/2/compare", json={"payload": {"trip": "T2"}})
        page = await client.post("/dead-letters/T1/2/compare", data={"payload": '{"trip": "T2"}'})
    assert [(each["kind"], each["text"]) for each in answer.json()] == [
        ("same", "{"),
        ("removed", '  "trip": "T1"'),
        ("added", '  "trip": "T2"'),
        ("same", "}"),
    ]
    assert '<span class="added">+   &#34;trip&#34;: &#34;T2&#34;' in page.text
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def nested(depth: int, width: int) -> Any:
    value: Any = [1] * width
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.timeout(20)
async def test_reject_payloads_too_large_to_compare(client_with):
    bomb = nested(150, 150_000)
    letters = Letters(letter("T1"), letter("T2", payload=["x"] * MAX_LINES))
    async with client_with(letters) as client:
        answer = await client.post("/api/dead-letters/T1/2/compare", json={"payload": bomb})
        page = await client.post("/dead-letters/T1/2/compare", data={"payload": json.dumps(bomb)})
        current = await client.post("/api/dead-letters/T2/2/compare", json={"payload": {}})
        shown = await client.get("/dead-letters/T2/2")
    assert (answer.status_code, answer.json()["code"]) == (422, "too_large")
    for bound in (f"{MAX_LINES:,} lines", f"{MAX_CHARACTERS:,} characters"):
        assert bound in answer.json()["message"]
        assert bound in page.text
    assert page.status_code == 422
    assert (current.status_code, "the current payload" in current.json()["message"]) == (422, True)
    assert shown.status_code == 200
    assert shown.text.count("\n") < MAX_LINES, "shown on one line"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([f"seat {n:04d} on PD100" for n in range(400)], [f"seat {n:04d} on PD200" for n in range(400)]),
        ([n % 2 for n in range(4990)], [n % 3 for n in range(4990)]),
        ([1] * 4990, [1, 2] * 2495),
        (list(range(4990)), list(reversed(range(4990)))),
        (nested(45, 4500), nested(46, 4500)),
    ],
    ids=["similar", "repetitive", "doubled", "reversed", "deep"],
)
def test_comparison_is_fast(before, after):
    check(before, after)


def check(before: Any, after: Any) -> list[DiffLine]:
    """Compare, and check that the diff contains both payloads completely."""
    lines = diff(before, after)
    for kind, payload in (("removed", before), ("added", after)):
        assert "\n".join(each.text for each in lines if each.kind in ("same", kind)) == format_payload(payload)
    return lines


@given(before=st.lists(st.integers(0, 3), max_size=12), after=st.lists(st.integers(0, 3), max_size=12))
def test_diff_is_complete_and_minimal(before, after):
    if before == after:
        assert diff(before, after) == []
        return
    lines = check(before, after)
    old, new = format_payload(before).split("\n"), format_payload(after).split("\n")
    assert sum(each.kind == "same" for each in lines) == longest_common(old, new)


def longest_common(old: list[str], new: list[str]) -> int:
    row = [0] * (len(new) + 1)
    for line in old:
        above = row
        row = [0]
        for at, other in enumerate(new):
            row.append(above[at] + 1 if line == other else max(above[at + 1], row[at]))
    return row[-1]


def test_diff_distinguishes_types():
    assert [(each.kind, each.text) for each in check({"paid": 1}, {"paid": True})][1:3] == [
        ("removed", '  "paid": 1'),
        ("added", '  "paid": true'),
    ]
    assert diff({"a": 1, "b": 2}, {"b": 2, "a": 1}) == [], "order of names"
    check({"text": "one\u2028line"}, {"text": "another\u2028line"})


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_reject_deeply_nested_payload(depth):
    with pytest.raises(ConsoleError) as caught:
        parse("[" * depth + "]" * depth)
    assert caught.value.status == 400

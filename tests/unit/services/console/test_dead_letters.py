"""Acts on all dead letters of a group are on those that were shown; payloads are compared within bounds.

The engine's answers are written down here: dead letters that come between a look and an act would be a race elsewhere.
tests/e2e has the pages on a real platform.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from html import unescape
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.saga.messages import DeadLetter, DeadLetterFilter
from perdure.saga.schema import OperatorAction
from services.console.badge import Badge
from services.console.engine import Engine
from services.console.people.roles import Role
from services.console.problems import ConsoleError
from services.console.reads import payloads
from services.console.reads.payloads import MOST_CHARACTERS, MOST_LINES, difference, read_payload, written

BEGIN = datetime(2026, 11, 24, 12, tzinfo=UTC)
OPERATOR = "olga@example.com"


def letter(saga_id: str, **changes: Any) -> DeadLetter:
    values = {"service": "Trips", "step": "hotel", "position": 2, "compensation": "Hotels/cancel", "error": "boom"}
    values |= {"signature": "boom", "reason": "no money", "attempts": 2, "since": BEGIN, "payload": {"trip": saga_id}}
    return DeadLetter(id=f"{saga_id}/2", saga_id=saga_id, **{**values, **changes})


class Letters:
    """What the engine answers about dead letters, and what was done to them.

    Args:
        letters: Those there are.
    """

    def __init__(self, *letters: DeadLetter) -> None:
        self.letters = list(letters)
        self.listed: list[dict[str, Any]] = []
        self.acts: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/query":  # the number of alerts, which is on each page
            return httpx.Response(200, json={"rows": []})
        body = json.loads(request.content) if request.content else {}
        if request.url.path == "/DeadLetters/list":
            self.listed.append(body)
            return httpx.Response(200, json=self._page(body))
        if request.url.path.endswith("/status"):
            about = {"saga_id": "T1", "service": "Trips", "status": "needs_attention", "strategy": "reverse"}
            about |= {"reason": "no money", "started_at": str(BEGIN), "updated_at": str(BEGIN), "steps": []}
            return httpx.Response(200, json=about)
        assert request.url.path == "/DeadLetters/act_on_many"
        self.acts.append(body)
        return httpx.Response(200, json={"done": sorted(body["proofs"]), "refused": {}})

    def _page(self, body: dict[str, Any]) -> dict[str, Any]:
        wanted = DeadLetterFilter(**{name: body.get(name) for name in ("saga_id", "service", "step", "signature")})
        fitting = [each for each in self.letters if wanted.matches(each)]
        size, number = body.get("page_size", 50), body.get("page", 1)
        signatures = [each.signature for each in fitting]
        return {
            "items": [each.model_dump(mode="json") for each in fitting[(number - 1) * size : number * size]],
            "total": len(fitting),
            "page": number,
            "pages": max(1, -(-len(fitting) // size)),
            "groups": [{"signature": each, "count": signatures.count(each)} for each in dict.fromkeys(signatures)],
        }

    def done(self) -> list[tuple[str, dict[str, str], list[str]]]:
        """Return what was done: the act, to which that fit, and the ids that were signed."""
        return [
            (each["act"], {name: value for name, value in each["filter"].items() if value}, sorted(each["proofs"]))
            for each in self.acts
        ]


@pytest.fixture
def signed_in_at(open_desk):
    """Opens consoles with such dead letters, and clients of somebody with a role."""

    @asynccontextmanager
    async def opened(letters: Letters, role: Role = Role.OPERATOR):
        async with open_desk() as desk, httpx.AsyncClient(transport=httpx.MockTransport(letters)) as http:
            engine = Engine("http://ingress.test", "http://admin.test", http)
            desk.app.state.parts = dataclasses.replace(desk.parts, engine=engine, badge=Badge(engine))
            token = await desk.add(OPERATOR, role)
            async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:
                yield client

    return opened


def forms(html: str) -> list[dict[str, str]]:
    """Return what the forms send that act on groups, without who acts, why and what they do."""
    found = re.findall(r'<form class="inline" method="post" action="/dead-letters">(.*?)</form>', html, re.DOTALL)
    fields = [dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)) for form in found]
    return [{name: unescape(value) for name, value in form.items() if name != "csrf"} for form in fields]


THREE_SERVICES = ("Trips", "Parcels", "Parcels", "Orders")


def of_services() -> Letters:
    return Letters(*(letter(f"T{number}", service=service) for number, service in enumerate(THREE_SERVICES)))


async def test_an_act_on_a_group_is_on_those_that_the_page_was_filtered_to(signed_in_at):
    letters = of_services()
    async with signed_in_at(letters) as client:
        html = (await client.get("/dead-letters?service=Parcels")).text
        assert "<strong>2</strong>" in html
        (form,) = forms(html)
        answer = await client.post("/dead-letters", data={**form, "act": "discard", "reason": "paid by hand"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/dead-letters")
    assert letters.done() == [("discard", {"service": "Parcels", "signature": "boom"}, ["T1/2", "T2/2"])]


async def test_the_question_before_an_act_on_a_group_names_the_act_and_the_group(signed_in_at):
    letters = of_services()
    async with signed_in_at(letters) as client:
        filtered = unescape((await client.get("/dead-letters?service=Parcels&step=hotel")).text)
        one = unescape((await client.get("/dead-letters?service=Orders")).text)
    assert 'data-confirm="Discard all 2 dead letters of boom, service Parcels, step hotel?">Discard all 2<' in filtered
    assert 'data-confirm="Discard the one dead letter of boom, service Orders?">Discard<' in one
    for act in OperatorAction:
        assert f'name="act" value="{act.value}"' in one
    assert 'href="/dead-letters?service=Parcels&step=hotel&signature=boom"' in filtered, "the filter is kept"


@pytest.mark.parametrize("change", ["came", "went", "redriven"])
async def test_a_group_that_has_changed_since_it_was_shown_is_not_acted_on(signed_in_at, change):
    letters = of_services()
    async with signed_in_at(letters) as client:
        (form,) = forms((await client.get("/dead-letters")).text)
        if change == "came":
            letters.letters.append(letter("late"))
        elif change == "went":
            del letters.letters[0]
        else:
            letters.letters[0] = letter("T0", redriven=1)
        answer = await client.post("/dead-letters", data={**form, "act": "redrive"})
        assert (answer.status_code, "409 · changed" in answer.text) == (409, True), answer.text
        assert "nothing was done" in answer.text
        assert letters.acts == []

        (form,) = forms((await client.get("/dead-letters")).text)  # who looks again acts on what they see then
        assert (await client.post("/dead-letters", data={**form, "act": "redrive"})).status_code == 303
    assert letters.done() == [("redrive", {"signature": "boom"}, sorted(each.id for each in letters.letters))]


async def test_a_form_that_does_not_say_what_was_shown_does_nothing(signed_in_at):
    letters = of_services()
    async with signed_in_at(letters) as client:
        answer = await client.post("/dead-letters", data={"act": "redrive", "signature": "boom"})
        nothing = await client.post("/dead-letters", data={"act": "redrive", "service": "Trips", "shown": "0" * 64})
    assert (answer.status_code, nothing.status_code) == (409, 400)
    assert letters.acts == []


async def test_hundreds_are_shown_in_pages_and_acted_on_at_once(signed_in_at):
    letters = Letters(*(letter(f"T{number:03}", signature=f"boom {number % 2}") for number in range(702)))
    async with signed_in_at(letters) as client:
        html = (await client.get("/dead-letters?page=15")).text
        assert re.findall(r'href="/dead-letters/(\w+)/2"', html) == ["T700", "T701"]
        assert "page 15 of 15" in html
        first, second = forms(html)
        assert first["shown"] != second["shown"]
        assert (await client.post("/dead-letters", data={**second, "act": "skip"})).status_code == 303
    (done,) = letters.done()
    assert done[2] == [f"T{number:03}/2" for number in range(1, 702, 2)]


async def test_more_than_can_be_signed_at_once_are_narrowed_down_first(signed_in_at):
    many = [letter(f"T{number:04}", payload=None) for number in range(1001)]
    letters = Letters(*many, letter("other", signature="rare"))
    async with signed_in_at(letters) as client:
        html = (await client.get("/dead-letters")).text
        assert forms(html) == []
        assert "More than 1,000 are listed" in html
        assert forms((await client.get("/dead-letters?signature=boom")).text) == []
        assert [each["signature"] for each in forms((await client.get("/dead-letters?signature=rare")).text)] == [
            "rare"
        ]


async def test_who_may_only_look_costs_one_page(signed_in_at):
    letters = Letters(*(letter(f"T{number}") for number in range(60)))
    async with signed_in_at(letters, Role.VIEWER) as client:
        html = (await client.get("/dead-letters")).text
    assert (forms(html), "<strong>60</strong>" in html) == ([], True)
    assert [each["page_size"] for each in letters.listed] == [50]


async def test_a_program_says_which_it_has_seen_and_acts_on_those_or_on_none(signed_in_at):
    letters = of_services()
    async with signed_in_at(letters) as client:
        seen = (await client.get("/api/dead-letters?service=Parcels")).json()["items"]
        about = {"act": "resolve", "filter": {"service": "Parcels"}}
        about["letters"] = {each["id"]: each["redriven"] for each in seen}
        letters.letters.append(letter("late", service="Parcels"))
        refused = await client.post("/api/dead-letters", json=about)
        assert (refused.status_code, refused.json()["code"], letters.acts) == (409, "changed", [])

        about["letters"]["late/2"] = 0
        assert (await client.post("/api/dead-letters", json=about)).json()["done"] == ["T1/2", "T2/2", "late/2"]
        # Who does not say what they have seen means all that fit now, as with a single one.
        del about["letters"]
        letters.letters.append(letter("later", service="Parcels"))
        assert len((await client.post("/api/dead-letters", json=about)).json()["done"]) == 4
    assert len(letters.acts) == 2


async def test_a_payload_is_compared_by_an_operator_outside_of_the_event_loop(signed_in_at, monkeypatch):
    threads = []

    def compared(*both: Any) -> list[payloads.DiffLine]:
        threads.append(threading.current_thread())
        return difference(*both)

    monkeypatch.setattr(payloads, "difference", compared)
    async with signed_in_at(Letters(letter("T1"))) as client:
        answer = await client.post("/api/dead-letters/T1/2/compare", json={"payload": {"trip": "T2"}})
        page = await client.post("/dead-letters/T1/2/compare", data={"payload": '{"trip": "T2"}'})
    assert [(each["kind"], each["text"]) for each in answer.json()] == [
        ("same", "{"),
        ("gone", '  "trip": "T1"'),
        ("new", '  "trip": "T2"'),
        ("same", "}"),
    ]
    assert '<span class="new">+   &#34;trip&#34;: &#34;T2&#34;' in page.text
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def nested(depth: int, width: int) -> Any:
    value: Any = [1] * width
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.timeout(20)
async def test_what_is_too_much_to_compare_is_refused_with_the_bound(signed_in_at):
    """A small request can be a large text: each of its values gets a line, with all of its indentation."""
    bomb = nested(150, 150_000)
    letters = Letters(letter("T1"), letter("T2", payload=["x"] * MOST_LINES))
    async with signed_in_at(letters) as client:
        answer = await client.post("/api/dead-letters/T1/2/compare", json={"payload": bomb})
        page = await client.post("/dead-letters/T1/2/compare", data={"payload": json.dumps(bomb)})
        there_is = await client.post("/api/dead-letters/T2/2/compare", json={"payload": {}})
        shown = await client.get("/dead-letters/T2/2")
    assert (answer.status_code, answer.json()["code"]) == (422, "too_large")
    for bound in (f"{MOST_LINES:,} lines", f"{MOST_CHARACTERS:,} characters"):
        assert bound in answer.json()["message"]
        assert bound in page.text
    assert page.status_code == 422
    assert (there_is.status_code, "the payload there is" in there_is.json()["message"]) == (422, True)
    assert shown.status_code == 200
    assert shown.text.count("\n") < MOST_LINES, "shown on one line instead"


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
    ids=["honest", "alike", "twice", "reversed", "deep"],
)
def test_no_two_payloads_take_long_to_compare(before, after):
    check(before, after)


def check(before: Any, after: Any) -> list[payloads.DiffLine]:
    """Compare; what is the same and gone is all there was, what is the same and new is all there is to be."""
    lines = difference(before, after)
    for kind, payload in (("gone", before), ("new", after)):
        assert "\n".join(each.text for each in lines if each.kind in ("same", kind)) == written(payload)
    return lines


@given(before=st.lists(st.integers(0, 3), max_size=12), after=st.lists(st.integers(0, 3), max_size=12))
def test_a_difference_has_all_lines_and_the_fewest_changes(before, after):
    if before == after:
        assert difference(before, after) == []
        return
    lines = check(before, after)
    old, new = written(before).split("\n"), written(after).split("\n")
    assert sum(each.kind == "same" for each in lines) == longest_common(old, new)


def longest_common(old: list[str], new: list[str]) -> int:
    row = [0] * (len(new) + 1)
    for line in old:
        above = row
        row = [0]
        for at, other in enumerate(new):
            row.append(above[at] + 1 if line == other else max(above[at + 1], row[at]))
    return row[-1]


def test_values_that_only_python_takes_for_equal_differ():
    assert [(each.kind, each.text) for each in check({"paid": 1}, {"paid": True})][1:3] == [
        ("gone", '  "paid": 1'),
        ("new", '  "paid": true'),
    ]
    assert difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) == [], "the order of names means nothing"
    check({"text": "one\u2028line"}, {"text": "another\u2028line"})


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_a_payload_too_deep_for_anybody_is_refused(depth):
    with pytest.raises(ConsoleError) as refused:
        read_payload("[" * depth + "]" * depth)
    assert refused.value.status == 400

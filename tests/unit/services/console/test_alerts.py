"""What is wrong, as the page shows it: with a reconciler that looks, with one that does not, and without an engine.

The engine's answers are written down here: a reconciler that has been silent for hours would take hours to come by.
tests/e2e has the page on a real platform.
"""

from __future__ import annotations

import dataclasses
import json
import re
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from perdure.alerts.conditions import Alert, Condition
from perdure.alerts.service import SCAN_INTERVAL, AlertList
from perdure.security.codec import JournalCodec
from services.console.badge import Badge
from services.console.engine import Engine
from services.console.pages.render import minutes
from services.console.people.persons import utc_now
from services.console.people.roles import Role
from services.console.reads.alerts import MOST

INVOCATION = "inv_1eh3dI3ietg55AjdQdiPLzzLWkGcAoZ1C6"
RETRIED = "inv_17HO1pYCxi7o05mEKz8fmhOJxjYe3pZgUV"


def alert(condition: Condition, invocation: str, **changes: Any) -> Alert:
    values = {"service": "Trips", "handler": "run", "key": "T1", "since": utc_now() - timedelta(minutes=12)}
    return Alert(id=f"{condition}/{invocation}", condition=condition, invocation=invocation, **{**values, **changes})


PAUSED = alert(Condition.PAUSED, INVOCATION)
FAILING = alert(Condition.BACKING_OFF, RETRIED, service="Parcels", handler="send", key="", reason="[500] no route")


class Answers:
    """What the engine answers.

    Args:
        told: What `Alerts` remembers; None when it never looked.
        wrong: What is wrong in the engine's tables.
    """

    def __init__(self, told: AlertList | None, wrong: list[Alert] | None = None) -> None:
        self.told = told
        self.wrong = wrong or []
        self.calls = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/query", "the service that knows of trouble may be in trouble itself"
        sql = json.loads(request.content)["query"]
        return httpx.Response(200, json={"rows": self._rows(sql)})

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        if "from state" in sql:
            self.calls += 1
            return [] if self.told is None else self._state(self.told)
        if "row_number()" in sql:
            return [
                {"id": one.invocation, "condition": one.condition, "service": one.service, "handler": one.handler}
                | {"key": one.key, "reason": one.reason, "since": str(one.since), "number": 1}
                for one in self.wrong
            ]
        if "sys_journal_events" in sql:
            failure = {"error_message": "RT0016: the journal does not fit", "related_command_name": "payment"}
            return [{"id": INVOCATION, "event_json": json.dumps({"Paused": {"last_failure": failure}})}]
        retried = {"id": RETRIED, "type": "service", "retry_count": 41, "next_retry_at": str(utc_now())}
        return [{"id": INVOCATION, "type": "workflow"}, {**retried, "last_failure": "[500 Internal] no route to host"}]

    @staticmethod
    def _state(told: AlertList) -> list[dict[str, str]]:
        state = {f"alert/{one.id}": one.model_dump_json() for one in (*told.open, *told.resolved)}
        state |= {"more": str(told.more), "scan_interval": json.dumps("PT60S")}
        if told.scanned_at is not None:
            state["scanned_at"] = json.dumps(told.scanned_at.isoformat())
        of = {"service_name": "Alerts", "service_key": "all"}
        return [{**of, "key": name, "value": value.encode().hex()} for name, value in state.items()]


@pytest.fixture
def answering(open_desk):
    """Opens consoles whose engine answers so."""

    @asynccontextmanager
    async def opened(answers: Answers, **changes: Any):
        async with (
            open_desk(**changes) as desk,
            httpx.AsyncClient(transport=httpx.MockTransport(answers)) as http,
        ):
            engine = Engine("http://ingress.test", "http://admin.test", http)
            desk.app.state.parts = dataclasses.replace(desk.parts, engine=engine, badge=Badge(engine))
            yield desk

    return opened


async def shown_to(desk, role: Role, path: str = "/alerts") -> str:
    token = await desk.add(f"{role.value}@example.com", role)
    async with desk.client(cookies={"perdure-console": token}) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    return answer.text


def told(*alerts: Alert, looked: timedelta = timedelta(seconds=20), **more: Any) -> AlertList:
    values = {"open": list(alerts), "resolved": [], "scanned_at": utc_now() - looked, **more}
    return AlertList(**values)


async def test_what_is_wrong_is_shown_with_why_since_when_and_how_often_it_was_tried(answering):
    # Not since the module was imported: a minute may have gone by.
    late = utc_now() - timedelta(minutes=12) - PAUSED.since
    wrong = [one.model_copy(update={"since": one.since + late}) for one in (FAILING, PAUSED)]
    async with answering(Answers(told(*wrong))) as desk:
        html = await shown_to(desk, Role.OPERATOR)
        found = (await api(desk)).json()
    assert [(each["trouble"], each["tried"], each["is_saga"], each["runbook"]) for each in found["open"]] == [
        ("backing_off", 41, False, "invocations-backing-off.md"),
        ("paused", None, True, "invocations-paused.md"),
    ]
    assert html.index(">Paused<") < html.index(">Backing off<"), "what waits for somebody comes first"
    assert "RT0016: the journal does not fit (in payment)" in html
    assert "no route to host" in html
    assert "tried 41" in html
    assert "for 12 min" in html
    assert 'href="/sagas/T1?service=Trips"' in html
    assert f'href="/invocations?search={RETRIED}"' in html
    assert "docs/how-to/runbooks/invocations-paused.md" in html
    assert "not looked" not in html
    assert re.search(r'id="alert-count".*?>2<span class="unseen"> open', html, re.DOTALL)
    for act in ("resume", "cancel", "kill"):
        assert f'formaction="/alerts/{INVOCATION}/{act}"' in html


async def api(desk) -> httpx.Response:
    token = await desk.add("api@example.com")
    async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:
        return await client.get("/api/alerts")


async def test_who_may_only_look_is_offered_no_act(answering):
    async with answering(Answers(told(PAUSED))) as desk:
        html = await shown_to(desk, Role.VIEWER)
    assert "Trips/<wbr>T1/<wbr>run" in html
    assert "formaction" not in html


@pytest.mark.parametrize("page", ["/alerts", "/invocations"])
async def test_who_has_steered_an_invocation_is_led_back_to_where_they_were(answering, page):
    class Steered(Answers):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/query":
                return httpx.Response(200, json={"rows": [{"target": "Trips/T1/run"}]})
            assert (request.method, request.url.path) == ("PATCH", f"/invocations/{INVOCATION}/resume")
            return httpx.Response(200)

    async with answering(Steered(told(PAUSED))) as desk:
        token = await desk.add("olga@example.com", Role.OPERATOR)
        async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:
            answer = await client.post(f"{page}/{INVOCATION}/resume", data={"reason": "go on"})
        (act,) = (each for each in await desk.parts.persons.acts() if each.act == "resume")
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    assert (act.actor, act.person, act.details) == ("olga@example.com", INVOCATION, "Trips/T1/run: go on")


async def test_what_is_over_stays_for_a_while(answering):
    ended = PAUSED.model_copy(update={"resolved_at": PAUSED.since + timedelta(minutes=3), "reason": "[500] no route"})
    async with answering(Answers(told(resolved=[ended]))) as desk:
        html = await shown_to(desk, Role.VIEWER)
    assert "All is well." in html
    assert "<td>3 min</td>" in html
    assert "no route" in html


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (told(looked=timedelta(hours=2)), "The reconciler has not looked for 2 h"),
        (told(looked=timedelta(hours=2)).model_copy(update={"scanned_at": None}), "The reconciler has never looked."),
        (None, "The reconciler has never looked."),
    ],
)
async def test_a_reconciler_that_does_not_look_is_told_on_every_page_and_the_engine_asked_itself(
    answering, answer, says
):
    async with answering(Answers(answer, [PAUSED])) as desk:
        html = await shown_to(desk, Role.VIEWER)
        found = (await api(desk)).json()
        account = await shown_to(desk, Role.APPROVER, "/account")
    assert says in html
    assert "docs/how-to/runbooks/reconciler-stale.md" in html
    assert "All is well" not in html
    assert "RT0016" in html
    assert (found["is_watched"], found["total"]) == (False, 1)
    assert "nobody knows" in account


async def test_without_an_engine_nobody_knows(desk):
    html = await shown_to(desk, Role.OPERATOR)
    assert "Nobody knows what is wrong now." in html
    assert "is the engine running?" in html
    assert "All is well" not in html
    found = (await api(desk)).json()
    assert (found["open"], found["total"], found["is_watched"]) == (None, None, None)
    assert len(found["problems"]) == 1
    assert "never looked" not in html


async def test_a_flood_is_counted_and_not_listed_to_its_end(answering):
    many = [
        alert(Condition.BACKING_OFF, f"inv_1{number:033}", service="Parcels", handler="send") for number in range(500)
    ]
    async with answering(Answers(told(PAUSED, *many, more=1200))) as desk:
        html = await shown_to(desk, Role.OPERATOR)
    assert "1701 invocations are in trouble." in html
    assert "<strong>500</strong>" in html
    assert html.count('<li class="card alert') == MOST


async def test_an_alert_of_a_later_version_is_counted_and_no_page_fails(answering):
    class Later(Answers):
        def _state(self, told: AlertList) -> list[dict[str, str]]:
            melting = PAUSED.model_dump_json().replace("paused", "melting")
            return [*super()._state(told), {"key": "alert/melting/x", "value": melting.encode().hex()}]

    async with answering(Later(told())) as desk:
        html = await shown_to(desk, Role.VIEWER)
    assert "1 invocation is in trouble." in html
    assert "All is well" not in html


async def test_a_console_without_the_keys_says_so_on_the_page_and_shows_the_others(answering):
    answers = Answers(told(PAUSED), [PAUSED])
    async with answering(answers) as desk, httpx.AsyncClient(transport=httpx.MockTransport(answers)) as http:
        engine = Engine("http://ingress.test", "http://admin.test", http, JournalCodec([b"k" * 32]))
        desk.app.state.parts = dataclasses.replace(desk.parts, engine=engine, badge=Badge(engine))
        html = await shown_to(desk, Role.VIEWER)
        found = (await api(desk)).json()
        assert html.count("the console needs the keys and the platform ID of the services") == 1
        assert "RT0016" in html
        assert "nobody knows" in await shown_to(desk, Role.APPROVER, "/account")
    assert_nobody_knows_whether_it_looks(html, found)
    assert found["total"] == 1


def assert_nobody_knows_whether_it_looks(html: str, found: dict[str, Any]) -> None:
    """What can't be read says nothing of the reconciler: it may well look, and tell."""
    assert "What the reconciler found could not be read." in html
    assert "what is below the console asked the engine itself" in html
    for verdict in ("never looked", "not looked", "Nobody is told", "lost sagas are not rolled back", "All is well"):
        assert verdict not in html
    assert found["is_watched"] is None
    assert len(found["problems"]) == 1


async def test_an_engine_that_refuses_the_question_tells_nothing_of_the_reconciler(answering):
    class Refusing(Answers):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if "from state" in json.loads(request.content)["query"]:
                return httpx.Response(500, json={"message": "Resources exhausted: the query was <cancelled>"})
            return super().__call__(request)

    async with answering(Refusing(told(), [PAUSED])) as desk:
        html = await shown_to(desk, Role.VIEWER)
        found = (await api(desk)).json()
    assert html.count("Resources exhausted: the query was &lt;cancelled&gt;") == 1
    assert "RT0016" in html
    assert_nobody_knows_whether_it_looks(html, found)


async def test_all_pages_of_a_moment_ask_the_engine_once(answering):
    answers = Answers(told(PAUSED))
    async with answering(answers) as desk:
        token = await desk.add("ada@example.com")
        async with desk.client(cookies={"perdure-console": token}) as client:
            for _ in range(5):
                assert "1<span" in (await client.get("/alerts/count")).text
    assert answers.calls == 1


async def test_a_runbook_is_linked_where_it_is_published(answering):
    async with answering(Answers(told(PAUSED)), runbooks_url="https://docs.example.com/runbooks/") as desk:
        html = await shown_to(desk, Role.VIEWER)
    assert 'href="https://docs.example.com/runbooks/invocations-paused.md"' in html


def test_three_beats_may_be_late():
    now = utc_now()
    assert told(looked=3 * SCAN_INTERVAL - timedelta(seconds=1)).is_current(now)
    assert not told(looked=3 * SCAN_INTERVAL + timedelta(seconds=1)).is_current(now)


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "less than a minute"), (59, "less than a minute"), (60, "1 min"), (3725, "1 h 2 min")]
)
def test_what_is_shown_for_long_does_not_change_each_second(seconds, words):
    assert minutes(timedelta(seconds=seconds)) == words

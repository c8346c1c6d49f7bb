"""The alerts page with a current and a stale reconciler, and without an engine.

The engine is faked, since a reconciler that is stale for hours would take hours. tests/e2e has the real page.
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
from services.console.alert_count import AlertCount
from services.console.auth.roles import Role
from services.console.auth.users import utc_now
from services.console.engine import EngineClient
from services.console.formatting import format_minutes
from services.console.health.service import MAX_ALERTS

INVOCATION = "inv_1eh3dI3ietg55AjdQdiPLzzLWkGcAoZ1C6"
RETRIED = "inv_17HO1pYCxi7o05mEKz8fmhOJxjYe3pZgUV"


def alert(condition: Condition, invocation: str, **changes: Any) -> Alert:
    values = {"service": "Trips", "handler": "run", "key": "T1", "since": utc_now() - timedelta(minutes=12)}
    return Alert(id=f"{condition}/{invocation}", condition=condition, invocation=invocation, **{**values, **changes})


PAUSED = alert(Condition.PAUSED, INVOCATION)
FAILING = alert(Condition.BACKING_OFF, RETRIED, service="Parcels", handler="send", key="", reason="[500] no route")


class FakeEngine:
    """An engine with the reconciler's stored alerts, None before its first scan, and the conditions of a scan."""

    def __init__(self, stored: AlertList | None, found: list[Alert] | None = None) -> None:
        self.stored = stored
        self.found = found or []
        self.calls = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/query", "the alerts service may be down"
        sql = json.loads(request.content)["query"]
        return httpx.Response(200, json={"rows": self._rows(sql)})

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        if "from state" in sql:
            self.calls += 1
            return [] if self.stored is None else self._state(self.stored)
        if "row_number()" in sql:
            of_attempts = "from sys_invocation_status" not in sql
            return [
                {"id": one.invocation, "condition": one.condition, "service": one.service, "handler": one.handler}
                | {"key": one.key, "reason": one.reason, "since": str(one.since), "number": 1}
                for one in self.found
                if (one.condition in (Condition.BACKING_OFF, Condition.HANGING)) is of_attempts
            ]
        if "sys_journal_events" in sql:
            failure = {"error_message": "RT0016: the journal does not fit", "related_command_name": "payment"}
            return [{"id": INVOCATION, "event_json": json.dumps({"Paused": {"last_failure": failure}})}]
        retried = {"id": RETRIED, "type": "service", "retry_count": 41, "next_retry_at": str(utc_now())}
        return [{"id": INVOCATION, "type": "workflow"}, {**retried, "last_failure": "[500 Internal] no route to host"}]

    @staticmethod
    def _state(stored: AlertList) -> list[dict[str, str]]:
        state = {f"alert/{one.id}": one.model_dump_json() for one in (*stored.open, *stored.resolved)}
        state |= {"more": str(stored.more), "scan_interval": json.dumps("PT60S")}
        if stored.scanned_at is not None:
            state["scanned_at"] = json.dumps(stored.scanned_at.isoformat())
        of = {"service_name": "Alerts", "service_key": "all"}
        return [{**of, "key": name, "value": value.encode().hex()} for name, value in state.items()]


@pytest.fixture
def answering(open_console):
    """Return a function that opens a console with a fake engine."""

    @asynccontextmanager
    async def opened(answers: FakeEngine, **changes: Any):
        async with (
            open_console(**changes) as console,
            httpx.AsyncClient(transport=httpx.MockTransport(answers)) as http,
        ):
            engine = EngineClient("http://ingress.test", "http://admin.test", http)
            console.app.state.components = dataclasses.replace(
                console.components, engine=engine, alert_count=AlertCount(engine)
            )
            yield console

    return opened


async def html_for(console, role: Role, path: str = "/alerts") -> str:
    token = await console.add(f"{role.value}@example.com", role)
    async with console.client(cookies={"perdure-console": token}) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    return answer.text


def stored(*alerts: Alert, scanned: timedelta = timedelta(seconds=20), **more: Any) -> AlertList:
    values = {"open": list(alerts), "resolved": [], "scanned_at": utc_now() - scanned, **more}
    return AlertList(**values)


async def test_page_shows_details_of_alerts(answering):
    # Relative to now, since the module may have been imported minutes ago.
    late = utc_now() - timedelta(minutes=12) - PAUSED.since
    alerts = [one.model_copy(update={"since": one.since + late}) for one in (FAILING, PAUSED)]
    async with answering(FakeEngine(stored(*alerts))) as console:
        html = await html_for(console, Role.OPERATOR)
        found = (await api(console)).json()
    assert [(each["condition"], each["attempts"], each["is_saga"], each["runbook"]) for each in found["open"]] == [
        ("backing_off", 41, False, "invocations-backing-off.md"),
        ("paused", None, True, "invocations-paused.md"),
    ]
    assert html.index(">Paused<") < html.index(">Backing off<"), "paused first"
    assert "RT0016: the journal does not fit (in payment)" in html
    assert "no route to host" in html
    assert "41 attempts" in html
    assert "for 12 min" in html
    assert 'href="/sagas/T1?service=Trips"' in html
    assert f'href="/invocations?search={RETRIED}"' in html
    assert "docs/how-to/runbooks/invocations-paused.md" in html
    assert "not scanned" not in html
    assert re.search(r'id="alert-count".*?>2<span class="visually-hidden"> open', html, re.DOTALL)
    for action in ("resume", "cancel", "kill"):
        assert f'formaction="/alerts/{INVOCATION}/{action}"' in html


async def api(console) -> httpx.Response:
    token = await console.add("api@example.com")
    async with console.client(headers={"authorization": f"Bearer {token}"}) as client:
        return await client.get("/api/alerts")


async def test_viewer_sees_no_actions(answering):
    async with answering(FakeEngine(stored(PAUSED))) as console:
        html = await html_for(console, Role.VIEWER)
    assert "Trips/<wbr>T1/<wbr>run" in html
    assert "formaction" not in html


@pytest.mark.parametrize("page", ["/alerts", "/invocations"])
async def test_action_returns_to_its_page(answering, page):
    class Resumable(FakeEngine):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/query":
                return httpx.Response(200, json={"rows": [{"target": "Trips/T1/run"}]})
            assert (request.method, request.url.path) == ("PATCH", f"/invocations/{INVOCATION}/resume")
            return httpx.Response(200)

    async with answering(Resumable(stored(PAUSED))) as console:
        token = await console.add("olga@example.com", Role.OPERATOR)
        async with console.client(headers={"authorization": f"Bearer {token}"}) as client:
            answer = await client.post(f"{page}/{INVOCATION}/resume", data={"reason": "go on"})
        (entry,) = (each for each in await console.components.users.actions() if each.action == "resume")
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    assert (entry.actor, entry.subject, entry.details) == ("olga@example.com", INVOCATION, "Trips/T1/run: go on")


async def test_page_shows_recent_alerts(answering):
    ended = PAUSED.model_copy(update={"resolved_at": PAUSED.since + timedelta(minutes=3), "reason": "[500] no route"})
    async with answering(FakeEngine(stored(resolved=[ended]))) as console:
        html = await html_for(console, Role.VIEWER)
    assert "No alerts." in html
    assert "<td>3 min</td>" in html
    assert "no route" in html


@pytest.mark.parametrize(
    ("alerts", "message"),
    [
        (stored(scanned=timedelta(hours=2)), "The reconciler has not scanned for 2 h"),
        (
            stored(scanned=timedelta(hours=2)).model_copy(update={"scanned_at": None}),
            "The reconciler has never scanned.",
        ),
        (None, "The reconciler has never scanned."),
    ],
)
async def test_stale_reconciler_is_reported_on_every_page(answering, alerts, message):
    async with answering(FakeEngine(alerts, [PAUSED])) as console:
        html = await html_for(console, Role.VIEWER)
        found = (await api(console)).json()
        account = await html_for(console, Role.APPROVER, "/account")
    assert message in html
    assert "docs/how-to/runbooks/reconciler-stale.md" in html
    assert "No alerts." not in html
    assert "RT0016" in html
    assert (found["is_current"], found["total"]) == (False, 1)
    assert "> unknown<" in account


async def test_alerts_are_unknown_without_engine(console):
    html = await html_for(console, Role.OPERATOR)
    assert "The current alerts are unknown." in html
    assert "check that the engine is running" in html
    assert "No alerts." not in html
    found = (await api(console)).json()
    assert (found["open"], found["total"], found["is_current"]) == (None, None, None)
    assert len(found["problems"]) == 1
    assert "never scanned" not in html


async def test_list_of_alerts_is_limited(answering):
    many = [
        alert(Condition.BACKING_OFF, f"inv_1{number:033}", service="Parcels", handler="send") for number in range(500)
    ]
    async with answering(FakeEngine(stored(PAUSED, *many, more=1200))) as console:
        html = await html_for(console, Role.OPERATOR)
    assert "1701 open alerts." in html
    assert "<strong>500</strong>" in html
    assert html.count('<li class="card alert') == MAX_ALERTS


async def test_unknown_alert_is_counted(answering):
    class NewerVersion(FakeEngine):
        def _state(self, stored: AlertList) -> list[dict[str, str]]:
            melting = PAUSED.model_dump_json().replace("paused", "melting")
            return [*super()._state(stored), {"key": "alert/melting/x", "value": melting.encode().hex()}]

    async with answering(NewerVersion(stored())) as console:
        html = await html_for(console, Role.VIEWER)
    assert "1 open alert." in html
    assert "No alerts." not in html


async def test_missing_decryption_keys_are_reported(answering):
    answers = FakeEngine(stored(PAUSED), [PAUSED])
    async with answering(answers) as console, httpx.AsyncClient(transport=httpx.MockTransport(answers)) as http:
        engine = EngineClient("http://ingress.test", "http://admin.test", http, JournalCodec([b"k" * 32]))
        console.app.state.components = dataclasses.replace(
            console.components, engine=engine, alert_count=AlertCount(engine)
        )
        html = await html_for(console, Role.VIEWER)
        found = (await api(console)).json()
        assert html.count("the console needs the keys and the platform ID of the services") == 1
        assert "RT0016" in html
        assert "> unknown<" in await html_for(console, Role.APPROVER, "/account")
    assert_reconciler_state_is_unknown(html, found)
    assert found["total"] == 1


def assert_reconciler_state_is_unknown(html: str, found: dict[str, Any]) -> None:
    assert "The reconciler may not be running." in html
    assert "This page shows a scan by the console." in html
    for text in ("never scanned", "not scanned", "No notifications are sent", "are not rolled back", "No alerts."):
        assert text not in html
    assert found["is_current"] is None
    assert len(found["problems"]) == 1


async def test_failed_query_leaves_reconciler_state_unknown(answering):
    class Rejecting(FakeEngine):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if "from state" in json.loads(request.content)["query"]:
                return httpx.Response(500, json={"message": "Resources exhausted: the query was <cancelled>"})
            return super().__call__(request)

    async with answering(Rejecting(stored(), [PAUSED])) as console:
        html = await html_for(console, Role.VIEWER)
        found = (await api(console)).json()
    assert html.count("Resources exhausted: the query was &lt;cancelled&gt;") == 1
    assert "RT0016" in html
    assert_reconciler_state_is_unknown(html, found)


async def test_alert_count_is_cached(answering):
    answers = FakeEngine(stored(PAUSED))
    async with answering(answers) as console:
        token = await console.add("ada@example.com")
        async with console.client(cookies={"perdure-console": token}) as client:
            for _ in range(5):
                assert "1<span" in (await client.get("/alerts/count")).text
    assert answers.calls == 1


async def test_page_links_published_runbooks(answering):
    async with answering(FakeEngine(stored(PAUSED)), runbooks_url="https://docs.example.com/runbooks/") as console:
        html = await html_for(console, Role.VIEWER)
    assert 'href="https://docs.example.com/runbooks/invocations-paused.md"' in html


def test_reconciler_is_current_for_three_scan_intervals():
    now = utc_now()
    assert stored(scanned=3 * SCAN_INTERVAL - timedelta(seconds=1)).is_current(now)
    assert not stored(scanned=3 * SCAN_INTERVAL + timedelta(seconds=1)).is_current(now)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "less than a minute"), (59, "less than a minute"), (60, "1 min"), (3725, "1 h 2 min")]
)
def test_format_minutes(seconds, text):
    assert format_minutes(timedelta(seconds=seconds)) == text

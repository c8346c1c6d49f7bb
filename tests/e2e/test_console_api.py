"""The console's JSON API against its OpenAPI document, and event streams, on a running platform."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from examples.s12_status.app import orders
from perdure.serving import build_app
from perdure.testing.served import ServedApp
from tests.e2e.console_platform import ADMINISTRATOR, ConsolePlatform

pytestmark = pytest.mark.timeout(300)


def test_responses_conform_to_openapi(console: ConsolePlatform):
    from tests.e2e.openapi_fuzz import fuzz_api  # noqa: PLC0415 - every worker collects, and schemathesis loads slowly

    console.trip("described", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/described").status_code == 200, "approval")
    headers = {"authorization": f"Bearer {console.token()}"}
    description = httpx.get(f"{console.url}/api/openapi.json", trust_env=False).json()
    statuses = fuzz_api(description, console.url, headers)
    assert len(statuses) > 17
    # Queries have succeeded, and the session has not ended.
    for name in (
        "overview",
        "list_alerts",
        "list_sagas",
        "inbox",
        "list_dead_letters",
        "list_services",
        "list_users",
        "account",
    ):
        assert 200 in statuses[name], (name, statuses[name])
    assert not any(status == 401 for name, found in statuses.items() if name != "sign_in" for status in found)
    assert 404 in statuses["show_saga"]


def watched(console: ConsolePlatform, workflow: str) -> Iterator[tuple[str, str]]:
    """Yield the events of a workflow's stream."""
    headers = {"authorization": f"Bearer {console.token()}"}
    with (
        httpx.Client(trust_env=False, timeout=30) as http,
        http.stream("GET", f"{console.url}/api/sagas/{workflow}/events", headers=headers) as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream"), stream.read()
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, line.removeprefix("data: ")


def test_stream_saga_until_its_end(console: ConsolePlatform):
    console.trip("watched", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/watched").status_code == 200, "approval")
    events: list[tuple[str, str]] = []
    decided = False
    for event in watched(console, "watched"):
        events.append(event)
        if not decided and json.loads(event[1])["status"]["current_step"] == "approval":
            decided = True
            answer = console.api("POST", "/api/approvals/watched/approve", body={"reason": "yes"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["signed"] is True
    *states, last = events
    assert last == ("end", "final")
    phases = [json.loads(data)["status"]["phase"] for name, data in states if name == "status"]
    assert phases[0] == "running"
    assert phases[-1] == "completed"
    timeline = json.loads(states[-1][1])["timeline"]
    assert [step["step"] for step in timeline["steps"]] == ["order", "flight", "hotel", "approval", "payment"]
    assert console.api("GET", "/api/sagas/unknown/events").status_code == 404


def test_stream_workflow_without_steps(console: ConsolePlatform):
    def statuses(order: str, at_payment: Callable[[], object]) -> list[dict[str, Any]]:
        console.ask(f"/Orders/{order}/run/send", order)
        console.until(lambda: console.api("GET", f"/api/sagas/{order}").status_code == 200, order)
        found = [{"phase": "not_started"}]
        for name, data in watched(console, order):
            if name == "status":
                found.append(json.loads(data)["status"])
                if found[-1]["phase"] == "paying" != found[-2]["phase"]:
                    at_payment()
        return found

    def kill(order: str) -> None:
        (found,) = console.api("GET", f"/api/invocations?search=Orders/{order}/").json()["items"]
        assert console.api("POST", f"/api/invocations/{found['id']}/kill", body={}).status_code == 204

    with ServedApp(build_app(orders)) as served, console.deployed(served.url):
        paid = statuses("tea", lambda: console.ask("/Orders/tea/pay", 12))
        killed = statuses("coffee", lambda: kill("coffee"))
    paying = next(each for each in paid if each["phase"] == "paying")
    assert (paying["progress"], paying["current_step"], paying["completed_steps"]) == (0.5, "payment", ["inventory"])
    assert (paid[-1]["phase"], paid[-1]["progress"], paid[-1]["is_complete"]) == ("completed", 1, True)
    assert (killed[-1]["phase"], killed[-1]["error"], killed[-1]["is_complete"]) == ("failed", "killed", True)


def test_rejections_of_handlers_are_passed_on(console: ConsolePlatform):
    console.trip("twice", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/twice").status_code == 200, "approval")
    wrong = {"reason": "", "payload_digest": "0" * 64}
    changed = console.api("POST", "/api/approvals/twice/approve", body=wrong)
    assert changed.status_code in (403, 409), changed.text
    assert console.api("POST", "/api/approvals/twice/reject", body={"reason": "no"}).status_code == 200
    late = console.api("POST", "/api/approvals/twice/approve", body={})
    assert (late.status_code, late.json()["code"]) == (409, "contrary_decision") or late.json()["code"] == "too_late"
    audit_log = console.api("GET", "/api/approvals/twice").json()["audit_log"]
    assert [entry["result"].partition(":")[0] for entry in audit_log].count("refused") == 2
    missing = console.api("POST", "/api/dead-letters/twice/2/redrive", body={"reason": "x"})
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    denied = console.api("POST", "/api/dead-letters/twice/2/redrive", by="vera@example.com", body={"reason": "x"})
    assert (denied.status_code, denied.json()["role"]) == (403, "operator")


def test_resume_and_cancel_paused_invocation(console: ConsolePlatform):
    console.trip("halts", amount_minor=250_000)
    paused = console.pause("halts")

    def stuck() -> list[dict[str, Any]]:
        found = console.api("GET", "/api/invocations?stuck=true&search=Trips/halts/").json()["items"]
        assert isinstance(found, list)
        return found

    console.until(lambda: [each["status"] for each in stuck()] == ["paused"], "paused trip")
    assert stuck()[0]["reason"] == "paused by an operator, or after the last attempt"
    paused_sagas = console.api("GET", "/api/sagas?phase=paused").json()["items"]  # includes those of test_console.py
    (found,) = (each for each in paused_sagas if each["key"] == "halts")
    assert console.api("GET", "/api/sagas?search=halts&service=Trips").json()["items"] == [found]
    assert console.api("GET", "/api/sagas?search=nowhere").json()["items"] == []
    assert console.api("GET", "/api/overview").json()["paused"] >= 1

    path = f"/api/invocations/{paused}"
    assert console.api("POST", f"{path}/resume", by="vera@example.com", body={}).status_code == 403
    assert console.api("POST", f"{path}/resume", body={"reason": "go on"}).status_code == 204
    console.until(lambda: stuck() == [], "end of the pause")
    assert console.api("POST", f"{path}/cancel", body={"reason": "not wanted"}).status_code == 204
    console.until(lambda: console.phase("halts") == "cancelled", "end of the trip")
    logged = console.api("GET", "/api/users/actions").json()[:2]
    assert [(each["actor"], each["action"], each["details"]) for each in logged] == [
        ("grace@example.com", "cancel", "Trips/halts/run: not wanted"),
        ("grace@example.com", "resume", "Trips/halts/run: go on"),
    ]


def test_act_on_schedule_with_signature(console: ConsolePlatform):
    name = "trips/nächtlich"
    console.schedule(name)
    path = f"/api/schedules/{quote(name)}"
    assert console.api("GET", path).json()["name"] == name
    assert console.api("POST", f"{path}/pause", by="vera@example.com", body={}).status_code == 403
    paused = console.api("POST", f"{path}/pause", body={"reason": "holidays"})
    assert paused.status_code == 200
    entry = paused.json()["audit_log"][0]
    assert (entry["actor"], entry["action"], entry["reason"]) == (ADMINISTRATOR, "pause", "holidays")
    assert entry["signed_action"]["credential"]["actor"] == ADMINISTRATOR
    assert console.api("POST", f"{path}/resume", body={}).json()["state"] == "active"

    digest = console.api("GET", path).json()["digest"]
    console.schedule(name, cron="* * * * *")
    late = console.api("POST", f"{path}/trigger", body={"digest": digest})
    assert (late.status_code, late.json()["code"]) == (409, "changed")
    headers = {"authorization": f"Bearer {console.token()}"}
    form = httpx.post(
        f"{console.url}/schedules/{quote(name)}/trigger", data={"digest": digest}, headers=headers, trust_env=False
    )
    assert (form.status_code, "has changed; check it" in form.text) == (409, True)
    schedules = console.api("GET", "/api/schedules").json()["items"]  # includes those of test_console.py
    (listed,) = (each for each in schedules if each["name"] == name)
    assert listed["spec"]["cron"] == "* * * * *"
    again = console.api("POST", f"{path}/pause", body={"digest": listed["digest"]})
    assert (again.status_code, again.json()["state"]) == (200, "paused")
    assert console.api("POST", f"{path}/remove", body={}).status_code == 200
    assert console.api("GET", path).status_code == 404
    assert console.api("POST", f"{path}/remove", body={}).status_code == 404


def test_add_administrators_by_command(console: ConsolePlatform):
    again = console.run("admin", "--name", "GRACE@example.com", "--password-stdin")
    assert (again.returncode, again.stderr) == (
        1,
        "perdure-platform console: user 'grace@example.com' already exists\n",
    )
    weak = console.run("admin", "--name", "eve@example.com", "--password-stdin", password="short")  # noqa: S106
    assert weak.returncode == 1
    assert "a password needs 12 to 200 characters; this one has 5" in weak.stderr
    made = console.run("admin", "--name", "second@example.com", "--group", "finance", "--password-stdin")
    assert (made.returncode, made.stdout) == (0, f"Administrator second@example.com added. Sign in at {console.url}\n")
    users = {each["name"]: each for each in console.api("GET", "/api/users").json()}
    assert users["second@example.com"]["groups"] == ["finance"]

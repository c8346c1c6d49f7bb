"""The console's JSON API against its own OpenAPI description, on a real platform; and a saga's events."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.consoled import ADMINISTRATOR, Consoled

pytestmark = pytest.mark.timeout(300)

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 12

# Not played with at random: what ends the session that asks or changes who may ask, and what streams.
LEFT_OUT = {
    "sign_out",
    "sign_out_everywhere",
    "change_password",
    "change_person",
    "give_password",
    "end_sessions",
    "watch_saga",
}


def test_no_answer_to_whatever_is_asked_is_a_fault_or_undescribed(console: Consoled):
    console.trip("described", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/described").status_code == 200, "approval")
    headers = {"authorization": f"Bearer {console.token()}"}
    description = httpx.get(f"{console.url}/api/openapi.json", trust_env=False).json()
    operations = [found.ok() for found in schemathesis.openapi.from_dict(description).get_all_operations()]
    names = {each.definition.raw["operationId"] for each in operations}
    assert names >= LEFT_OUT
    assert len(names) > 25
    statuses: dict[str, set[int]] = {}
    with requests.Session() as session:
        session.trust_env = False
        for operation in operations:
            name = operation.definition.raw["operationId"]
            if name in LEFT_OUT:
                continue
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if mode is GenerationMode.NEGATIVE and not _can_be_wrong(operation):
                    continue

                statuses.setdefault(name, set()).update(_ask(operation, mode, console.url, session, headers))
    # It was not only refused: what lists and shows has answered, and nobody was signed out on the way.
    for name in ("overview", "list_sagas", "inbox", "list_dead_letters", "list_services", "list_people", "me"):
        assert 200 in statuses[name], (name, statuses[name])
    assert not any(status == 401 for name, found in statuses.items() if name != "sign_in" for status in found)
    assert 404 in statuses["show_saga"]


def _ask(
    operation: Any, mode: GenerationMode, url: str, session: requests.Session, headers: dict[str, str]
) -> set[int]:
    """Ask an operation in many ways, right ones or wrong ones; return the statuses of the answers."""
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def ask(case: Any) -> None:
        answer = case.call_and_validate(base_url=url, session=session, headers=headers, checks=CHECKS, timeout=60)
        statuses.add(answer.status_code)

    ask()
    return statuses


def _can_be_wrong(operation: Any) -> bool:
    return bool(operation.body) or any(True for _ in operation.iter_parameters())


def test_a_sagas_status_is_streamed_until_it_is_over(console: Consoled):
    console.trip("watched", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/watched").status_code == 200, "approval")
    headers = {"authorization": f"Bearer {console.token()}"}
    events: list[tuple[str, str]] = []
    decided = False
    with (
        httpx.Client(trust_env=False, timeout=30) as http,
        http.stream("GET", f"{console.url}/api/sagas/watched/events", headers=headers) as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, line.removeprefix("data: ")))
                if not decided and json.loads(events[-1][1])["status"]["current_step"] == "approval":
                    decided = True
                    answer = console.api("POST", "/api/approvals/watched/approve", body={"reason": "yes"})
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["signed"] is True
    *states, last = events
    assert last == ("end", "over")
    phases = [json.loads(data)["status"]["phase"] for name, data in states if name == "status"]
    assert phases[0] == "running"
    assert phases[-1] == "completed"
    timeline = json.loads(states[-1][1])["timeline"]
    assert [step["step"] for step in timeline["steps"]] == ["order", "flight", "hotel", "approval", "payment"]
    assert console.api("GET", "/api/sagas/nobody/events").status_code == 404


def test_what_a_handler_refuses_is_told_with_its_own_words(console: Consoled):
    """Also: an approver's own trip, a decision that came too late, and what is no dead letter."""
    console.trip("twice", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/twice").status_code == 200, "approval")
    wrong = {"reason": "", "payload_digest": "0" * 64}
    changed = console.api("POST", "/api/approvals/twice/approve", body=wrong)
    assert changed.status_code in (403, 409), changed.text
    assert console.api("POST", "/api/approvals/twice/reject", body={"reason": "no"}).status_code == 200
    late = console.api("POST", "/api/approvals/twice/approve", body={})
    assert (late.status_code, late.json()["code"]) == (409, "contrary_decision") or late.json()["code"] == "too_late"
    trail = console.api("GET", "/api/approvals/twice").json()["trail"]
    assert [entry["result"].partition(":")[0] for entry in trail].count("refused") == 2
    missing = console.api("POST", "/api/dead-letters/twice/2/redrive", body={"reason": "x"})
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    denied = console.api("POST", "/api/dead-letters/twice/2/redrive", by="vera@example.com", body={"reason": "x"})
    assert (denied.status_code, denied.json()["role"]) == (403, "operator")


def test_a_paused_invocation_is_seen_with_its_reason_and_resumed(console: Consoled):
    console.trip("rests", amount_minor=250_000)
    console.until(lambda: console.api("GET", "/api/approvals/rests").status_code == 200, "approval")

    def stuck() -> list[dict[str, Any]]:
        found = console.api("GET", "/api/invocations?stuck=true&search=Trips/rests/").json()["items"]
        assert isinstance(found, list)
        return found

    (running,) = console.api("GET", "/api/invocations?search=Trips/rests/").json()["items"]
    admin = f"http://127.0.0.1:{console.launched.env['PERDURE_ADMIN_PORT']}"
    httpx.patch(f"{admin}/invocations/{running['id']}/pause", trust_env=False).raise_for_status()
    console.until(lambda: [each["status"] for each in stuck()] == ["paused"], "paused trip")
    assert stuck()[0]["reason"] == "paused by hand, or after its last try"
    (found,) = console.api("GET", "/api/sagas?phase=paused").json()["items"]
    assert found["key"] == "rests"
    assert console.api("GET", "/api/sagas?search=rests&service=Trips").json()["items"] == [found]
    assert console.api("GET", "/api/sagas?search=nowhere").json()["items"] == []
    assert console.api("GET", "/api/overview").json()["paused"] >= 1

    path = f"/api/invocations/{running['id']}"
    assert console.api("POST", f"{path}/resume", by="vera@example.com", body={}).status_code == 403
    assert console.api("POST", f"{path}/resume", body={"reason": "go on"}).status_code == 204
    console.until(lambda: stuck() == [], "end of the pause")
    assert console.api("POST", f"{path}/cancel", body={"reason": "not wanted"}).status_code == 204
    console.until(lambda: console.phase("rests") == "cancelled", "end of the trip")
    logged = console.api("GET", "/api/people/acts").json()[:2]
    assert [(each["actor"], each["act"], each["details"]) for each in logged] == [
        ("grace@example.com", "cancel", "Trips/rests/run: not wanted"),
        ("grace@example.com", "resume", "Trips/rests/run: go on"),
    ]


def test_a_schedule_whatever_its_name_is_steered_by_an_operator_who_signs(console: Consoled):
    name = "trips/nächtlich"
    console.schedule(name)
    path = f"/api/schedules/{quote(name)}"
    assert console.api("GET", path).json()["name"] == name
    assert console.api("POST", f"{path}/pause", by="vera@example.com", body={}).status_code == 403
    paused = console.api("POST", f"{path}/pause", body={"reason": "holidays"})
    assert paused.status_code == 200
    entry = paused.json()["trail"][0]
    assert (entry["actor"], entry["act"], entry["reason"]) == (ADMINISTRATOR, "pause", "holidays")
    assert entry["proof"]["credential"]["actor"] == ADMINISTRATOR
    assert console.api("POST", f"{path}/resume", body={}).json()["state"] == "active"
    assert console.api("POST", f"{path}/remove", body={}).status_code == 200
    assert console.api("GET", path).status_code == 404
    assert console.api("POST", f"{path}/remove", body={}).status_code == 404


def test_the_command_line_makes_administrators_and_says_what_is_wrong(console: Consoled):
    again = console.run("admin", "--name", "GRACE@example.com", "--password-stdin")
    assert (again.returncode, again.stderr) == (
        1,
        "perdure-platform console: there is a person 'grace@example.com' already\n",
    )
    weak = console.run("admin", "--name", "eve@example.com", "--password-stdin", password="short")  # noqa: S106
    assert weak.returncode == 1
    assert "a password has 12 to 200 characters; this one has 5" in weak.stderr
    made = console.run("admin", "--name", "second@example.com", "--group", "finance", "--password-stdin")
    assert (made.returncode, made.stdout) == (0, f"second@example.com may sign in at {console.url} now\n")
    people = {each["name"]: each for each in console.api("GET", "/api/people").json()}
    assert people["second@example.com"]["groups"] == ["finance"]

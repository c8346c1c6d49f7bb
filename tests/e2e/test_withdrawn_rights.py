"""Rights end when they are withdrawn at the console: links and delegations of people who are disabled or demoted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from perdure.approvals.targets import PRINCIPALS
from tests.e2e.consoled import ADMINISTRATOR, PASSWORD, Consoled

pytestmark = pytest.mark.timeout(180)

PERDURE = Path(sys.executable).with_name("perdure")


class Rights:
    """People of one test at the console, and what they hold.

    Args:
        console: The console.
        name: What the test's people and trips are called after.
    """

    def __init__(self, console: Consoled, name: str) -> None:
        self.console = console
        self.trip = f"rights-{name}"
        self.person = f"{name}@example.com"

    def add(self, *roles: str) -> None:
        body = {"name": self.person, "password": PASSWORD, "roles": list(roles)}
        assert self.console.api("POST", "/api/people", body=body).status_code == 201
        self.until_known()

    def change(self, **change: Any) -> None:
        answer = self.console.api("PATCH", f"/api/people/{self.person}", body=change)
        assert answer.status_code == 200, answer.text
        self.until_known()

    def until_known(self) -> None:
        """Wait until the engine has what the console's database says."""
        people = {each["name"]: each for each in self.console.api("GET", "/api/people").json()}
        wanted = people[self.person]

        def known() -> bool:
            answer = httpx.post(
                f"{self.console.launched.ingress}/{PRINCIPALS}/{self.person}/status", timeout=30, trust_env=False
            ).raise_for_status()
            found = answer.json()
            return found["roles"] == sorted(wanted["roles"]) and found["active"] != wanted["disabled"]

        self.console.until(known, f"present rights of {self.person} at the engine")

    def waiting(self) -> None:
        self.console.trip(self.trip, amount_minor=250_000)
        path = f"/api/approvals/{self.trip}"
        self.console.until(lambda: self.console.api("GET", path).status_code == 200, "approval")

    def link(self, person: str) -> str:
        """Return a link's token, as the command prints it for who tries things out."""
        home = self.console.launched.home
        printed = subprocess.run(
            [
                *(PERDURE, "approvals", "link", self.trip, "--person", person, "--console-url", self.console.url),
                *("--link-key-file", home / "keys" / "approval-links.pem", "--ingress", self.console.launched.ingress),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return printed.stdout.strip().rpartition("/l/")[2]

    def decide(self, token: str, verdict: str = "approve") -> httpx.Response:
        """Press the button of a link's page."""
        url = f"{self.console.url}/l/{token}"
        return httpx.post(url, data={"verdict": verdict}, timeout=30, trust_env=False)

    def look(self, token: str) -> httpx.Response:
        """Open a link's page."""
        return httpx.get(f"{self.console.url}/l/{token}", timeout=30, trust_env=False)

    def audit_log(self) -> list[tuple[str, str]]:
        entries = self.console.api("GET", f"/api/approvals/{self.trip}").json()["audit_log"]
        return [(entry["action"], entry["result"]) for entry in entries[1:]]

    def status(self) -> str:
        return str(self.console.api("GET", f"/api/approvals/{self.trip}").json()["status"])


@pytest.fixture
def rights(console: Consoled) -> Callable[[str], Rights]:
    return lambda name: Rights(console, name)


def test_link_of_disabled_person_is_refused(rights: Callable[[str], Rights]):
    with_link = rights("dora")
    with_link.add("approver")
    with_link.waiting()
    token = with_link.link(with_link.person)
    with_link.change(disabled=True)
    for answer in (with_link.look(token), with_link.decide(token)):
        assert answer.status_code == 403
        assert f"{with_link.person} is disabled" in answer.text
    with_link.change(disabled=False)
    answer = with_link.decide(token)
    assert answer.status_code == 403
    assert "was issued before the rights" in answer.text
    assert with_link.audit_log() == [("approve", "refused:rights_withdrawn")] * 2
    assert with_link.status() == "open"


def test_viewer_decides_by_no_link(rights: Callable[[str], Rights]):
    viewer = rights("vito")
    viewer.add("viewer")
    viewer.waiting()
    answer = viewer.decide(viewer.link(viewer.person))
    assert answer.status_code == 403
    assert f"{viewer.person} lacks the role approver" in answer.text
    assert viewer.status() == "open"


@pytest.mark.parametrize("demoted", ["delegator", "delegate"])
def test_delegation_of_demoted_person_is_refused(console: Consoled, rights: Callable[[str], Rights], demoted: str):
    """The approvers are the administrator alone, who delegates to somebody; either of them loses the role."""
    deputy = rights(f"dee-{demoted}")
    deputy.add("approver")
    deputy.waiting()
    until = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    delegated = console.api(
        "POST", f"/api/approvals/{deputy.trip}/delegate", body={"to": deputy.person, "until": until}
    )
    assert delegated.status_code == 200, delegated.text
    loser = deputy if demoted == "delegate" else rights("grace")
    assert loser.person in (ADMINISTRATOR, deputy.person)
    before = ["administrator", "approver", "operator"] if demoted == "delegator" else ["approver"]
    loser.change(roles=[role for role in before if role != "approver"] or ["viewer"])
    loser.change(roles=before)
    answer = console.api("POST", f"/api/approvals/{deputy.trip}/approve", by=deputy.person, body={})
    assert (answer.status_code, answer.json()["code"]) == (403, "delegation_revoked")
    assert deputy.audit_log() == [
        ("delegate", "delegated"),
        ("revoke_delegation", "revoked"),
        ("approve", "refused:delegation_revoked"),
    ]
    inbox = [item["approval_id"] for item in console.api("GET", "/api/approvals", by=deputy.person).json()["items"]]
    assert deputy.trip not in inbox
    assert deputy.status() == "open"


def test_revoke_links_at_the_console(console: Consoled, rights: Callable[[str], Rights]):
    holder = rights("rosa")
    holder.add("approver")
    holder.waiting()
    tokens = [holder.link(holder.person), holder.link(holder.person)]
    url = f"/api/approvals/{holder.trip}/revoke-links"
    assert console.api("POST", url, by="vera@example.com", body={}).status_code == 403
    revoked = console.api("POST", url, by=holder.person, body={"person": holder.person, "reason": "lost my phone"})
    assert revoked.status_code == 200, revoked.text
    assert "this link was revoked" in holder.decide(tokens[0]).text
    page = holder.look(tokens[1])
    assert (page.status_code, "the link was revoked" in page.text, "Trip of" in page.text) == (200, True, False)
    assert "Trip of" in holder.look(holder.link(holder.person)).text
    # Of every approval, by an administrator.
    newer = holder.link(holder.person)
    assert console.api("POST", f"/api/people/{holder.person}/revoke-links").status_code == 204

    def ended() -> bool:
        return "was issued before the rights" in holder.decide(newer).text

    console.until(ended, "end of a link")
    assert ("approve", "rejected") not in holder.audit_log()
    acts = console.api("GET", "/api/people/acts").json()
    assert ("revoke links", holder.person) in [(act["act"], act["person"]) for act in acts]
    assert holder.status() == "open"


def test_withdrawal_survives_outage_and_kill(console: Consoled, rights: Callable[[str], Rights]):
    """The console records it with the change, and sends it until the engine has it."""
    holder = rights("otto")
    holder.add("approver")
    holder.waiting()
    token = holder.link(holder.person)
    pids = console.launched.pids()
    os.kill(pids["approvals"], signal.SIGSTOP)
    try:
        answer = console.api("PATCH", f"/api/people/{holder.person}", body={"disabled": True})
        assert answer.status_code == 200
        os.kill(pids["console"], signal.SIGKILL)
        console.until(lambda: console.launched.pids()["console"] != pids["console"], "another console")
        console.until(lambda: reachable(console), "answer of the console")
        page = httpx.get(
            f"{console.url}/people", cookies={"perdure-console": console.token()}, timeout=30, trust_env=False
        )
        assert "not yet known to the engine" in page.text
    finally:
        os.kill(pids["approvals"], signal.SIGCONT)
    holder.until_known()
    assert holder.decide(token).status_code == 403


def reachable(console: Consoled) -> bool:
    try:
        return httpx.get(f"{console.url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False

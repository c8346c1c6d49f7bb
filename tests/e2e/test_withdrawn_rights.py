"""Links and delegations of disabled or demoted users."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from perdure.approvals.targets import PRINCIPALS
from tests.command_line import run_perdure
from tests.e2e.console_platform import ADMINISTRATOR, PASSWORD, ConsolePlatform

pytestmark = pytest.mark.timeout(180)


class Rights:
    """The user and trip of one test."""

    def __init__(self, console: ConsolePlatform, name: str) -> None:
        self.console = console
        self.trip = f"rights-{name}"
        self.user = f"{name}@example.com"

    def add(self, *roles: str) -> None:
        body = {"name": self.user, "password": PASSWORD, "roles": list(roles)}
        assert self.console.api("POST", "/api/users", body=body).status_code == 201
        self.until_known()

    def change(self, **change: Any) -> None:
        answer = self.console.api("PATCH", f"/api/users/{self.user}", body=change)
        assert answer.status_code == 200, answer.text
        self.until_known()

    def until_known(self) -> None:
        """Wait until the engine has the rights from the console's database."""
        users = {each["name"]: each for each in self.console.api("GET", "/api/users").json()}
        expected = users[self.user]

        def known() -> bool:
            answer = httpx.post(
                f"{self.console.launched.ingress}/{PRINCIPALS}/{self.user}/status", timeout=30, trust_env=False
            ).raise_for_status()
            found = answer.json()
            return found["roles"] == sorted(expected["roles"]) and found["active"] != expected["disabled"]

        self.console.until(known, f"present rights of {self.user} at the engine")

    def waiting(self) -> None:
        self.console.trip(self.trip, amount_minor=250_000)
        path = f"/api/approvals/{self.trip}"
        self.console.until(lambda: self.console.api("GET", path).status_code == 200, "approval")

    def link(self, user: str) -> str:
        """Return the token of a link from the command."""
        home = self.console.launched.home
        printed = run_perdure(
            *("approvals", "link", self.trip, "--person", user, "--console-url", self.console.url),
            *("--link-key-file", str(home / "keys" / "approval-links.pem")),
            *("--ingress", self.console.launched.ingress),
        )
        assert printed.returncode == 0, printed.stderr
        return printed.stdout.strip().rpartition("/l/")[2]

    def decide(self, token: str, decision: str = "approve") -> httpx.Response:
        """Submit the form of a link's page."""
        url = f"{self.console.url}/l/{token}"
        return httpx.post(url, data={"decision": decision}, timeout=30, trust_env=False)

    def open_link(self, token: str) -> httpx.Response:
        """Open a link's page."""
        return httpx.get(f"{self.console.url}/l/{token}", timeout=30, trust_env=False)

    def audit_log(self) -> list[tuple[str, str]]:
        entries = self.console.api("GET", f"/api/approvals/{self.trip}").json()["audit_log"]
        return [(entry["action"], entry["result"]) for entry in entries[1:]]

    def status(self) -> str:
        return str(self.console.api("GET", f"/api/approvals/{self.trip}").json()["status"])


@pytest.fixture
def rights(console: ConsolePlatform) -> Callable[[str], Rights]:
    return lambda name: Rights(console, name)


def test_reject_link_of_disabled_user(rights: Callable[[str], Rights]):
    with_link = rights("dora")
    with_link.add("approver")
    with_link.waiting()
    token = with_link.link(with_link.user)
    with_link.change(disabled=True)
    for answer in (with_link.open_link(token), with_link.decide(token)):
        assert answer.status_code == 403
        assert f"{with_link.user} is disabled" in answer.text
    with_link.change(disabled=False)
    answer = with_link.decide(token)
    assert answer.status_code == 403
    assert "was issued before the rights" in answer.text
    assert with_link.audit_log() == [("approve", "refused:rights_withdrawn")] * 2
    assert with_link.status() == "open"


def test_reject_link_of_viewer(rights: Callable[[str], Rights]):
    viewer = rights("vito")
    viewer.add("viewer")
    viewer.waiting()
    answer = viewer.decide(viewer.link(viewer.user))
    assert answer.status_code == 403
    assert f"{viewer.user} lacks the role approver" in answer.text
    assert viewer.status() == "open"


@pytest.mark.parametrize("demoted", ["delegator", "delegate"])
def test_reject_delegation_of_demoted_user(console: ConsolePlatform, rights: Callable[[str], Rights], demoted: str):
    # The administrator is the only approver, and delegates. Then one of both loses the role.
    deputy = rights(f"dee-{demoted}")
    deputy.add("approver")
    deputy.waiting()
    until = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    delegated = console.api("POST", f"/api/approvals/{deputy.trip}/delegate", body={"to": deputy.user, "until": until})
    assert delegated.status_code == 200, delegated.text
    loser = deputy if demoted == "delegate" else rights("grace")
    assert loser.user in (ADMINISTRATOR, deputy.user)
    before = ["administrator", "approver", "operator"] if demoted == "delegator" else ["approver"]
    loser.change(roles=[role for role in before if role != "approver"] or ["viewer"])
    loser.change(roles=before)
    answer = console.api("POST", f"/api/approvals/{deputy.trip}/approve", by=deputy.user, body={})
    assert (answer.status_code, answer.json()["code"]) == (403, "delegation_revoked")
    assert deputy.audit_log() == [
        ("delegate", "delegated"),
        ("revoke_delegation", "revoked"),
        ("approve", "refused:delegation_revoked"),
    ]
    inbox = [item["approval_id"] for item in console.api("GET", "/api/approvals", by=deputy.user).json()["items"]]
    assert deputy.trip not in inbox
    assert deputy.status() == "open"


def test_revoke_links(console: ConsolePlatform, rights: Callable[[str], Rights]):
    holder = rights("rosa")
    holder.add("approver")
    holder.waiting()
    tokens = [holder.link(holder.user), holder.link(holder.user)]
    url = f"/api/approvals/{holder.trip}/revoke-links"
    assert console.api("POST", url, by="vera@example.com", body={}).status_code == 403
    revoked = console.api("POST", url, by=holder.user, body={"person": holder.user, "reason": "lost my phone"})
    assert revoked.status_code == 200, revoked.text
    assert "This link was revoked" in holder.decide(tokens[0]).text
    page = holder.open_link(tokens[1])
    assert (page.status_code, "the link was revoked" in page.text, "Trip of" in page.text) == (200, True, False)
    assert "Trip of" in holder.open_link(holder.link(holder.user)).text
    # An administrator revokes the links to all approvals.
    newer = holder.link(holder.user)
    assert console.api("POST", f"/api/users/{holder.user}/revoke-links").status_code == 204

    def ended() -> bool:
        return "was issued before the rights" in holder.decide(newer).text

    console.until(ended, "end of a link")
    assert ("approve", "rejected") not in holder.audit_log()
    actions = console.api("GET", "/api/users/actions").json()
    assert ("revoke links", holder.user) in [(entry["action"], entry["subject"]) for entry in actions]
    assert holder.status() == "open"


def test_withdrawal_survives_outage_and_kill(console: ConsolePlatform, rights: Callable[[str], Rights]):
    holder = rights("otto")
    holder.add("approver")
    holder.waiting()
    token = holder.link(holder.user)
    pids = console.launched.pids()
    os.kill(pids["approvals"], signal.SIGSTOP)
    try:
        answer = console.api("PATCH", f"/api/users/{holder.user}", body={"disabled": True})
        assert answer.status_code == 200
        os.kill(pids["console"], signal.SIGKILL)
        console.until(lambda: console.launched.pids()["console"] != pids["console"], "restarted console")
        console.until(lambda: reachable(console), "ready console")
        page = httpx.get(
            f"{console.url}/users", cookies={"perdure-console": console.token()}, timeout=30, trust_env=False
        )
        assert "change pending" in page.text
    finally:
        os.kill(pids["approvals"], signal.SIGCONT)
    holder.until_known()
    assert holder.decide(token).status_code == 403


def reachable(console: ConsolePlatform) -> bool:
    try:
        return httpx.get(f"{console.url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False

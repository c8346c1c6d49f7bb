"""Who may call what through the gateway, on a real platform that serves more than its own handlers."""

from __future__ import annotations

import httpx
import pytest

from examples.s07_signals.app import documents
from perdure.serving import build_app
from perdure.testing.served import ServedApp
from tests.e2e.consoled import ADMINISTRATOR, Consoled

pytestmark = pytest.mark.timeout(300)

VIEWER = "vera@example.com"


def ask(console: Consoled, path: str, *, by: str, body: str | None = None) -> httpx.Response:
    """Call a handler at the gateway."""
    return console.api("POST", f"/gateway/{path}", by=by, body=body)


def test_who_may_only_look_sees_a_workflows_status_and_can_not_signal_it(console: Consoled):
    with ServedApp(build_app(documents)) as served, console.deployed(served.url):
        console.ask("/Documents/contract-1/run/send", "Contract")
        console.until(lambda: ask(console, "Documents/contract-1/status", by=VIEWER).status_code == 200, "status")
        refused = ask(console, "Documents/contract-1/review", by=VIEWER, body="approved")
        assert refused.status_code == 403
        assert refused.json()["role"] == "operator"
        assert ask(console, "Documents/contract-1/status", by=VIEWER).json()["is_complete"] is False

        # An operator's word counts, and it is the first one that has arrived.
        done = ask(console, "Documents/contract-1/review", by=ADMINISTRATOR, body="rejected")
        assert done.status_code == 200, done.text
        headers = {"authorization": f"Bearer {console.token(VIEWER)}"}
        path = "/gateway/restate/workflow/Documents/contract-1/attach"
        result = httpx.get(f"{console.url}{path}", headers=headers, trust_env=False)
        assert result.json() == "'Contract' was reviewed: rejected"

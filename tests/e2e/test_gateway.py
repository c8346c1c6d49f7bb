"""Calls through the gateway to handlers of another deployment, on a running platform."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from examples.s07_signals.app import documents
from perdure.security import PrivateKey, SigningRules, TrustedKeys, set_signing_rules
from perdure.serving import build_app
from perdure.testing.served import ServedApp
from tests.e2e.console_platform import ADMINISTRATOR, ConsolePlatform

pytestmark = pytest.mark.timeout(300)

VIEWER = "vera@example.com"


def ask(console: ConsolePlatform, path: str, *, by: str, body: str | None = None) -> httpx.Response:
    """Call a handler at the gateway."""
    return console.api("POST", f"/gateway/{path}", by=by, body=body)


def test_viewer_reads_status_but_cannot_signal(console: ConsolePlatform):
    with ServedApp(build_app(documents)) as served, console.deployed(served.url):
        console.ask("/Documents/contract-1/run/send", "Contract")
        console.until(lambda: ask(console, "Documents/contract-1/status", by=VIEWER).status_code == 200, "status")
        rejected = ask(console, "Documents/contract-1/review", by=VIEWER, body="approved")
        assert rejected.status_code == 403
        assert rejected.json()["role"] == "operator"
        assert ask(console, "Documents/contract-1/status", by=VIEWER).json()["is_complete"] is False

        done = ask(console, "Documents/contract-1/review", by=ADMINISTRATOR, body="rejected")
        assert done.status_code == 200, done.text
        result = attach(console, "contract-1", f"Bearer {console.token(ADMINISTRATOR)}")
        assert result.json() == "'Contract' was reviewed: rejected"
        # Without a known caller, a viewer may not read the result.
        assert attach(console, "contract-1", f"Bearer {console.token(VIEWER)}").status_code == 404


def attach(console: ConsolePlatform, key: str, authorization: str, operation: str = "attach") -> httpx.Response:
    """Read the result of a document's review at the gateway."""
    path = f"/gateway/restate/workflow/Documents/{key}/{operation}"
    return httpx.get(f"{console.url}{path}", headers={"authorization": authorization}, trust_env=False, timeout=30)


@pytest.fixture
def trusted_console(console: ConsolePlatform) -> Iterator[None]:
    """Trust the console's issuer key in this process."""
    issuer = PrivateKey.load(console.launched.home / "keys" / "console-issuer.pem")
    set_signing_rules(SigningRules(trusted_keys=TrustedKeys(issuers=(issuer.public,))))
    yield
    set_signing_rules(None)


@pytest.mark.usefixtures("trusted_console")
def test_callers_read_their_own_executions_after_a_restart(console: ConsolePlatform):
    with ServedApp(build_app(documents)) as served, console.deployed(served.url):
        keys = {name: create_key(console, name) for name in ("press", "till")}

        def sent(name: str, path: str) -> httpx.Response:
            headers = {"authorization": keys[name], "content-type": "application/json"}
            return httpx.post(
                f"{console.url}/gateway/Documents/{path}", headers=headers, content='"Contract"', trust_env=False
            )

        assert sent("press", "contract-2/run/send").status_code == 202
        assert sent("press", "contract-3/run/send?delay=1h").status_code == 202
        restart(console)
        for key in ("contract-2", "contract-3"):
            assert attach(console, key, keys["press"], "output").status_code == 470, key
            assert attach(console, key, keys["till"], "output").status_code == 404, key
        # A second start under the same key does not change the caller.
        assert sent("till", "contract-2/run/send").json()["status"] == "PreviouslyAccepted"
        assert attach(console, "contract-2", keys["till"], "output").status_code == 404
        assert ask(console, "Documents/contract-2/review", by=ADMINISTRATOR, body="approved").status_code == 200
        assert attach(console, "contract-2", keys["press"]).json() == "'Contract' was reviewed: approved"
        assert attach(console, "contract-2", keys["till"]).status_code == 404


def restart(console: ConsolePlatform) -> None:
    """Stop the console, and wait until the platform has restarted it."""
    before = console.launched.pids()["console"]
    os.kill(before, signal.SIGTERM)

    def is_restarted() -> bool:
        try:
            answers = httpx.get(f"{console.url}/ready", trust_env=False).is_success
        except httpx.TransportError:
            return False
        return answers and console.launched.pids().get("console") not in (None, before)

    console.until(is_restarted, "restarted console")


def create_key(console: ConsolePlatform, name: str) -> str:
    """Create an API key, and return the authorization header."""
    wanted = {"name": name, "handlers": ["Documents/run"]}
    made = console.api("POST", "/api/keys", by=ADMINISTRATOR, body=wanted)
    assert made.status_code == 201, made.text
    return f"Bearer {made.json()['secret']}"

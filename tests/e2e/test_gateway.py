"""Who may call what through the gateway, on a real platform that serves more than its own handlers."""

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
        result = attach(console, "contract-1", f"Bearer {console.token(ADMINISTRATOR)}")
        assert result.json() == "'Contract' was reviewed: rejected"
        # Who has started it is not known, and so it is no viewer's.
        assert attach(console, "contract-1", f"Bearer {console.token(VIEWER)}").status_code == 404


def attach(console: Consoled, key: str, authorization: str, way: str = "attach") -> httpx.Response:
    """Ask the gateway for the result of a document's review."""
    path = f"/gateway/restate/workflow/Documents/{key}/{way}"
    return httpx.get(f"{console.url}{path}", headers={"authorization": authorization}, trust_env=False, timeout=30)


@pytest.fixture
def trusting(console: Consoled) -> Iterator[None]:
    """What this process serves believes the console."""
    issuer = PrivateKey.load(console.launched.home / "keys" / "console-issuer.pem")
    set_signing_rules(SigningRules(trusted_keys=TrustedKeys(issuers=(issuer.public,))))
    yield
    set_signing_rules(None)


@pytest.mark.usefixtures("trusting")
def test_callers_read_their_own_executions_after_a_restart(console: Consoled):
    with ServedApp(build_app(documents)) as served, console.deployed(served.url):
        keys = {name: made_key(console, name) for name in ("press", "till")}

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
        # A second start under the same key changes nothing about whose it is.
        assert sent("till", "contract-2/run/send").json()["status"] == "PreviouslyAccepted"
        assert attach(console, "contract-2", keys["till"], "output").status_code == 404
        assert ask(console, "Documents/contract-2/review", by=ADMINISTRATOR, body="approved").status_code == 200
        assert attach(console, "contract-2", keys["press"]).json() == "'Contract' was reviewed: approved"
        assert attach(console, "contract-2", keys["till"]).status_code == 404


def restart(console: Consoled) -> None:
    """Stop the console, and wait until the platform has started another one."""
    before = console.launched.pids()["console"]
    os.kill(before, signal.SIGTERM)

    def is_back() -> bool:
        try:
            answers = httpx.get(f"{console.url}/ready", trust_env=False).is_success
        except httpx.TransportError:
            return False
        return answers and console.launched.pids().get("console") not in (None, before)

    console.until(is_back, "another console")


def made_key(console: Consoled, name: str) -> str:
    """Make an API key, and return what to send as authorization."""
    wanted = {"name": name, "handlers": ["Documents/run"]}
    made = console.api("POST", "/api/keys", by=ADMINISTRATOR, body=wanted)
    assert made.status_code == 201, made.text
    return f"Bearer {made.json()['secret']}"

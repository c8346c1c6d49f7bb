"""Web pages of another origin in Chromium, which must neither read nor act at any port of the platform."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Playwright

from perdure.testing.server import RestateServer
from services.runtime.booking import ORDINARY
from tests.e2e.console_platform import CHROMIUM, ConsolePlatform
from tests.e2e.foreign_page import REBOUND, attack, attackers_site, rebound_page, rejected

pytestmark = pytest.mark.timeout(180)

ORDER = json.dumps(ORDINARY.model_dump(mode="json"))

INGRESS = {
    "reads": ["/restate/health"],
    "acts": ["/Trips/stolen/run", "/Trips/stolen/run/send", "/Trips/stolen/status"],
}
ADMIN = {"reads": ["/services", "/deployments"], "acts": ["/query"]}
SERVICE = {"reads": ["/metrics", "/health", "/ready", "/discover"], "acts": ["/invoke/Payments/charge"]}
QUERY = json.dumps({"query": "select target from sys_invocation"})


@pytest.fixture(scope="module")
def rebinding_browser(playwright: Playwright) -> Iterator[Browser]:
    """Chromium that resolves a name of the attacker to this machine."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    rules = [f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"]
    launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*sandbox, *rules])
    yield launched
    launched.close()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with attackers_site() as address:
        yield address


@pytest.fixture(params=["ingress", "admin", "service"])
def target(request: pytest.FixtureRequest, console: ConsolePlatform) -> tuple[str, dict[str, list[str]], str]:
    """The attacked port, the paths, and the request body."""
    setting, paths, body = {
        "ingress": ("PERDURE_INGRESS_PORT", INGRESS, ORDER),
        "admin": ("PERDURE_ADMIN_PORT", ADMIN, QUERY),
        "service": ("PERDURE_PAYMENTS_PORT", SERVICE, "{}"),
    }[request.param]
    return console.launched.env[setting], paths, body


def stolen(console: ConsolePlatform) -> list[str]:
    """Return the invocations under the attacker's key."""
    rows = httpx.post(
        f"http://127.0.0.1:{console.launched.env['PERDURE_ADMIN_PORT']}/query",
        json={"query": "select target from sys_invocation where target_service_key = 'stolen'"},
        headers={"accept": "application/json"},
    ).json()["rows"]
    return [row["target"] for row in rows]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_foreign_page_neither_reads_nor_acts(console, browser, site, target, host):
    port, paths, body = target
    page = browser.new_page()
    page.goto(site)
    learned = attack(page, f"http://{host}:{port}", **paths, body=body)
    page.close()
    leaks = {attempt: answer for attempt, answer in learned.items() if answer != "opaque" and not rejected(answer)}
    assert leaks == {}
    assert stolen(console) == []


def test_rebound_page_neither_reads_nor_acts(console, rebinding_browser, target):
    port, paths, body = target
    page = rebound_page(rebinding_browser, int(port))
    learned = attack(page, f"http://{REBOUND}:{port}", **paths, body=body)
    page.close()
    leaks = {attempt: answer for attempt, answer in learned.items() if answer != "opaque" and not rejected(answer)}
    assert leaks == {}
    assert stolen(console) == []


def test_programs_still_reach_documented_ports(console):
    env = console.launched.env
    status = httpx.get(f"http://127.0.0.1:{env['PERDURE_INGRESS_PORT']}/restate/health")
    listed = httpx.get(f"http://localhost:{env['PERDURE_ADMIN_PORT']}/services")
    assert (status.status_code, listed.status_code) == (200, 200)
    assert "Trips" in listed.text


def test_engine_ui_works_in_browser(console, browser):
    page = browser.new_page()
    with page.expect_response("**/query") as queried, page.expect_response("**/services") as listed:
        page.goto(f"http://localhost:{console.launched.env['PERDURE_ADMIN_PORT']}/ui/")
    assert (queried.value.request.method, queried.value.status, listed.value.status) == ("POST", 200, 200)
    page.close()


def test_bare_engine_shows_that_attack_works(pytestconfig, browser, site):
    """The same page reads without the proxy, so the tests above can fail."""
    with RestateServer(install_dir=Path(pytestconfig.rootpath) / ".local" / "engine") as server:
        page = browser.new_page()
        page.goto(site)
        learned = attack(page, server.ingress, reads=["/restate/health"], acts=["/Trips/stolen/run"], body=ORDER)
        page.close()
    assert learned["read /restate/health with credentials"].startswith("200 ")
    assert learned["post /Trips/stolen/run"].startswith("404 ")

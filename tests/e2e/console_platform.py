"""A platform with its console, and a browser."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from perdure.engine import LocatedEngine
from tests.e2e.launched import PROGRAM, Launched, environment, processes_of
from tests.support import until
from tests.system.scenarios.scenarios import order

CHROMIUM = Path("/usr/bin/chromium")
PASSWORD = "correct horse battery"  # noqa: S105 - of temporary users
ADMINISTRATOR = "grace@example.com"  # not ada, who travels and may not approve her own trips
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}

expect.set_options(timeout=60_000)


class ConsolePlatform:
    """A platform with its console."""

    def __init__(self, launched: Launched) -> None:
        self.launched = launched
        self.url = f"http://127.0.0.1:{launched.env['PERDURE_CONSOLE_PORT']}"
        self._admin = f"http://127.0.0.1:{launched.env['PERDURE_ADMIN_PORT']}"
        self._http = httpx.Client(trust_env=False, timeout=30)
        self._tokens: dict[str, str] = {}

    def close(self) -> None:
        self._http.close()

    def run(self, *arguments: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
        """Run `perdure-platform console`."""
        return subprocess.run(
            [PROGRAM, "console", *arguments],
            env=dict(self.launched.env),
            input=f"{password}\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ask(self, path: str, body: Any) -> None:
        """Call a handler at the ingress."""
        self._http.post(f"{self.launched.ingress}{path}", json=body).raise_for_status()

    @contextmanager
    def deployed(self, url: str) -> Iterator[None]:
        """Register a deployment for the duration of the block."""
        answer = self._http.post(f"{self._admin}/deployments", json={"uri": url})
        try:
            yield
        finally:
            self._http.delete(f"{self._admin}/deployments/{answer.json()['id']}?force=true").raise_for_status()

    def trip(self, trip_id: str, **changes: Any) -> None:
        """Start a trip."""
        self.ask(f"/Trips/{trip_id}/run/send", order(**changes).model_dump(mode="json"))

    def schedule(self, name: str, **changes: Any) -> None:
        """Set a schedule that books a trip every New Year."""
        target = {"service": "Trips", "handler": "run", "key": "{schedule}-{date}"}
        when = {"cron": "0 2 1 1 *", "timezone": "Europe/Vienna", "description": "a trip each New Year"}
        body = {**when, "target": target, "payload": order().model_dump(mode="json"), "actor": "olga@example.com"}
        body |= changes
        self.ask(f"/Schedules/{quote(name, safe='')}/set", body)

    def phase(self, trip_id: str) -> str:
        """Return the phase of a trip."""
        return str(self._http.post(f"{self.launched.ingress}/Trips/{trip_id}/status").json()["phase"])

    def pause(self, trip_id: str) -> str:
        """Pause a trip that waits for its approval, and return its invocation."""
        self.until(lambda: self.api("GET", f"/api/approvals/{trip_id}").status_code == 200, f"approval of {trip_id}")
        (found,) = self.api("GET", f"/api/invocations?search=Trips/{trip_id}/").json()["items"]
        self._http.patch(f"{self._admin}/invocations/{found['id']}/pause").raise_for_status()
        return str(found["id"])

    def until(self, condition: Callable[[], bool], what: str, within: float = 20) -> None:
        """Wait for a condition."""
        until(condition, what, within)

    def token(self, name: str = ADMINISTRATOR) -> str:
        """Return the token of a new session of a user."""
        answer = self._http.post(f"{self.url}/api/session", json={"name": name, "password": PASSWORD})
        return str(answer.raise_for_status().json()["token"])

    def api(self, method: str, path: str, *, by: str = ADMINISTRATOR, body: Any = None) -> httpx.Response:
        """Call the console's API as a user, in one session per user while it lasts."""

        def answer() -> httpx.Response:
            headers = {"authorization": f"Bearer {self._tokens[by]}"}
            return self._http.request(method, f"{self.url}{path}", json=body, headers=headers)

        if by in self._tokens and (found := answer()).status_code != 401:
            return found
        self._tokens[by] = self.token(by)
        return answer()


@pytest.fixture(scope="session")
def console(engine: LocatedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsolePlatform]:
    """A platform whose console has two users: a viewer, and an administrator with all roles."""
    home = tmp_path_factory.mktemp("console") / "platform"
    env = {
        **environment(home, engine.path),
        "PERDURE_ORCHESTRATOR_COMPENSATION_ATTEMPTS": "2",
        "PERDURE_ORCHESTRATOR_COMPENSATION_DELAY": "PT0.1S",
        "PERDURE_ORCHESTRATOR_ROLLBACK_WAIT": "PT5M",
        "PERDURE_ORCHESTRATOR_APPROVERS": f'["{ADMINISTRATOR}"]',
        "PERDURE_SAGA_RECONCILER_INTERVAL": "PT2S",
        "PERDURE_SAGA_RECONCILER_GRACE": "PT1S",
        "PERDURE_CONSOLE_PASSWORD_MEMORY": "64",
        "PERDURE_CONSOLE_SIGN_INS": "1000/minute",  # the tests sign in more often than users
    }
    with Launched(home, env).up() as launched:
        found = ConsolePlatform(launched)
        try:
            made = found.run(
                "admin", "--name", ADMINISTRATOR, "--role", "approver", "--role", "operator", "--password-stdin"
            )
            assert made.returncode == 0, made.stderr
            viewer = {"name": "vera@example.com", "password": PASSWORD, "roles": ["viewer"]}
            assert found.api("POST", "/api/users", body=viewer).status_code == 201
            yield found
        finally:
            found.close()
    found.until(lambda: processes_of(home) == [], "end of all processes")


# Per module, since Playwright's event loop is the running loop of the thread, and other tests need their own.
@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Playwright without its own browsers."""
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Debian's Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: run make tools as root")
    # Chromium does not run as root in its sandbox, and CI runs as root.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=sandbox)
    yield launched
    launched.close()


@pytest.fixture
def contexts(browser: Browser, console: ConsolePlatform) -> Iterator[Callable[..., BrowserContext]]:
    """Return a function that opens an isolated browser context. Script and policy errors fail the test."""
    made: list[BrowserContext] = []
    errors: list[str] = []

    def make(**options: Any) -> BrowserContext:
        context = browser.new_context(base_url=console.url, viewport=options.pop("viewport", DESKTOP), **options)
        context.set_default_timeout(60_000)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on(
            "console",
            lambda message: errors.append(message.text) if "Content Security Policy" in message.text else None,
        )
        made.append(context)
        return context

    yield make
    for context in made:
        context.close()
    assert errors == []


def sign_in(context: BrowserContext, name: str = ADMINISTRATOR) -> Page:
    """Sign in with the keyboard, and return the page."""
    page = context.new_page()
    page.goto("/")
    page.keyboard.type(name)  # the field is focused
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/")
    return page


def keep(page: Page, name: str) -> Path:
    """Save a screenshot in .local/screenshots. Two of them are copied to docs/images."""
    file = Path(__file__).parents[2] / ".local" / "screenshots" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(file))
    return file

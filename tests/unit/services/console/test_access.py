"""Who may take which route: every route, by every role; forged forms; other sites; headers and cookies."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from perdure.errors import ConfigurationError
from services.console.app import create_app
from services.console.guard.access import role_of_route
from services.console.people.roles import Role, may
from services.console.settings import ConsoleSettings
from tests.unit.services.console.conftest import PASSWORD, settings_of

ANYBODY = None
VIEWER, APPROVER, OPERATOR, ADMINISTRATOR = Role

# The table of rights. A route that is missing here fails the test, until somebody says who may take it.
ROUTES: dict[str, Role | None] = {
    "GET /health": ANYBODY,
    "GET /ready": ANYBODY,
    "GET /signin": ANYBODY,
    "POST /signin": ANYBODY,
    "GET /l/{token}": ANYBODY,
    "POST /l/{token}": ANYBODY,
    "POST /api/session": ANYBODY,
    "GET /": VIEWER,
    "POST /signout": VIEWER,
    "POST /signout-everywhere": VIEWER,
    "GET /account": VIEWER,
    "POST /account/password": VIEWER,
    "GET /alerts": VIEWER,
    "GET /alerts/live": VIEWER,
    "GET /alerts/count": VIEWER,
    "POST /alerts/{invocation_id}/{steer}": OPERATOR,
    "GET /sagas": VIEWER,
    "GET /sagas/{saga_id:path}/live": VIEWER,
    "GET /sagas/{saga_id:path}": VIEWER,
    "GET /approvals": VIEWER,
    "GET /approvals/{approval_id:path}": VIEWER,
    "POST /approvals/{approval_id:path}/delegate": APPROVER,
    "POST /approvals/{approval_id:path}/revoke-links": VIEWER,  # the service says whose links they may end
    "POST /approvals/{approval_id:path}/{verdict}": APPROVER,
    "GET /dead-letters": VIEWER,
    "GET /dead-letters/{letter_id:path}": VIEWER,
    "POST /dead-letters": OPERATOR,
    "POST /dead-letters/{letter_id:path}/compare": OPERATOR,
    "POST /dead-letters/{letter_id:path}/{act}": OPERATOR,
    "GET /invocations": VIEWER,
    "POST /invocations/{invocation_id}/{steer}": OPERATOR,
    "GET /services": VIEWER,
    "GET /schedules": VIEWER,
    "POST /schedules/{name:path}/{steer}": OPERATOR,
    "GET /people": ADMINISTRATOR,
    "POST /people": ADMINISTRATOR,
    "POST /people/{name}": ADMINISTRATOR,
    "POST /people/{name}/password": ADMINISTRATOR,
    "POST /people/{name}/revoke-links": ADMINISTRATOR,
    "GET /keys": ADMINISTRATOR,
    "POST /keys": ADMINISTRATOR,
    "POST /keys/{name}/remove": ADMINISTRATOR,
    "GET /api/session": VIEWER,
    "DELETE /api/session": VIEWER,
    "DELETE /api/sessions": VIEWER,
    "POST /api/password": VIEWER,
    "GET /api/overview": VIEWER,
    "GET /api/alerts": VIEWER,
    "GET /api/alerts/events": VIEWER,
    "GET /api/sagas": VIEWER,
    "GET /api/sagas/{saga_id:path}/events": VIEWER,
    "GET /api/sagas/{saga_id:path}": VIEWER,
    "GET /api/approvals": VIEWER,
    "GET /api/approvals/{approval_id:path}": VIEWER,
    "POST /api/approvals/{approval_id:path}/delegate": APPROVER,
    "POST /api/approvals/{approval_id:path}/revoke-links": VIEWER,
    "POST /api/approvals/{approval_id:path}/approve": APPROVER,
    "POST /api/approvals/{approval_id:path}/reject": APPROVER,
    "GET /api/dead-letters": VIEWER,
    "GET /api/dead-letters/{letter_id:path}": VIEWER,
    "POST /api/dead-letters": OPERATOR,
    "POST /api/dead-letters/{letter_id:path}/compare": OPERATOR,
    "POST /api/dead-letters/{letter_id:path}/{act}": OPERATOR,
    "GET /api/invocations": VIEWER,
    "POST /api/invocations/{invocation_id}/{steer}": OPERATOR,
    "GET /api/services": VIEWER,
    "GET /api/schedules": VIEWER,
    "GET /api/schedules/{name:path}": VIEWER,
    "POST /api/schedules/{name:path}/{steer}": OPERATOR,
    "GET /api/people": ADMINISTRATOR,
    "GET /api/people/acts": ADMINISTRATOR,
    "POST /api/people": ADMINISTRATOR,
    "PATCH /api/people/{name}": ADMINISTRATOR,
    "POST /api/people/{name}/password": ADMINISTRATOR,
    "POST /api/people/{name}/revoke-links": ADMINISTRATOR,
    "DELETE /api/people/{name}/sessions": ADMINISTRATOR,
    "GET /api/keys": ADMINISTRATOR,
    "POST /api/keys": ADMINISTRATOR,
    "DELETE /api/keys/{name}": ADMINISTRATOR,
}
ENDLESS = {"GET /alerts/live", "GET /sagas/{saga_id:path}/live", "GET /api/alerts/events"}
SAMPLE = {"steer": "resume", "act": "skip", "verdict": "approve", "letter_id": "T1/2", "name": "nobody"}


def routes_of(app):
    # A router that is included keeps its routes to itself.
    included = [getattr(getattr(one, "original_router", None), "routes", [one]) for one in app.routes]
    for route in [each for routes in included for each in routes]:
        if hasattr(route, "dependant"):
            for method in route.methods:
                yield f"{method} {route.path}", route


def path_of(path: str) -> str:
    sample = {**SAMPLE, "steer": "trigger"} if "/schedules" in path else SAMPLE
    return re.sub(r"{(\w+)(:path)?}", lambda found: sample.get(found[1], "T1"), path)


def test_each_route_is_in_the_table_with_its_role(tmp_path):
    app = create_app(settings_of(tmp_path))
    assert {name: role_of_route(route) for name, route in routes_of(app)} == ROUTES


async def test_each_route_lets_in_who_has_its_role_and_nobody_else(desk):
    for role in Role:
        await desk.add(f"{role.value}@example.com", role)

    async def begun(_, path, headers):
        """Ask for a stream that has no end, and go away as soon as it has begun."""
        answer = httpx.Response(500)
        gone = asyncio.Event()

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            nonlocal answer
            if message["type"] == "http.response.start":
                answer = httpx.Response(message["status"], headers=message["headers"])
            answer = httpx.Response(answer.status_code, content=answer.content + message.get("body", b""))
            gone.set()

        raw = [(key.encode(), value.encode()) for key, value in headers.items()]
        scope = {"type": "http", "method": "GET", "path": path, "headers": raw, "query_string": b"", "root_path": ""}
        async with asyncio.timeout(10):
            await desk.app(scope, receive, send)
        return answer

    async with desk.client() as client:
        for name, needed in ROUTES.items():
            if needed is ANYBODY:
                continue
            method, path = name.split(" ")
            ask = begun if name in ENDLESS else client.request
            strange = await client.request(method, path_of(path))
            is_api = path.startswith("/api")
            assert strange.status_code == (401 if is_api else 303), name
            if not is_api:
                assert strange.headers["location"].startswith("/signin")
            for role in Role:
                token = await desk.token(f"{role.value}@example.com")  # some of the routes end all sessions
                headers = {"authorization": f"Bearer {token}"}
                answer = await ask(method, path_of(path), headers=headers)
                if may(frozenset({role}), needed):
                    assert answer.status_code not in (401, 403), (name, role, answer.text)
                    assert answer.status_code != 500, (name, role)
                else:
                    assert answer.status_code == 403, (name, role)
                    assert f"this needs the role '{needed.value}'" in answer.text.replace("&#39;", "'")


async def test_a_browsers_session_changes_nothing_without_its_token(desk):
    token = await desk.add("ada@example.com", Role.ADMINISTRATOR)
    signed_in = await desk.parts.sessions.find(token)
    new = {"name": "eve@example.com", "password": PASSWORD, "roles": ["viewer"]}
    async with desk.client(cookies={"perdure-console": token}) as client:
        for headers in ({}, {"x-csrf-token": "forged"}, {"x-csrf-token": ""}):
            answer = await client.post("/api/people", json=new, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "csrf")
        form = {**new, "csrf": "forged"}
        assert (await client.post("/people", data=form)).status_code == 403
        assert (await client.post("/people", data=new)).status_code == 403
        assert [each.name for each in await desk.parts.persons.all()] == ["ada@example.com"]

        done = await client.post("/people", data={**new, "csrf": signed_in.csrf})
        assert done.status_code == 303, done.text
        other = {**new, "name": "bob@example.com"}
        done = await client.post("/api/people", json=other, headers={"x-csrf-token": signed_in.csrf})
        assert done.status_code == 201
        assert len(await desk.parts.persons.all()) == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.test"},
        {"origin": "null"},
    ],
)
async def test_another_sites_page_can_neither_sign_in_nor_change_anything(desk, headers):
    token = await desk.add("ada@example.com")
    signed_in = await desk.parts.sessions.find(token)
    async with desk.client(headers=headers) as client:
        credentials = {"name": "ada@example.com", "password": PASSWORD}
        assert (await client.post("/signin", data=credentials)).status_code == 403
        assert (await client.post("/api/session", json=credentials)).status_code == 403
        client.cookies.set("perdure-console", token)
        answer = await client.post("/signout", data={"csrf": signed_in.csrf})
        assert answer.status_code == 403
        assert await desk.parts.sessions.find(token) is not None


async def test_each_answer_tells_the_browser_to_be_strict(desk):
    async with desk.client() as client:
        for path in ("/signin", "/api/session", "/static/console.css", "/nowhere", "/health"):
            headers = (await client.get(path)).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] in ("same-origin", "no-referrer")
            if not path.startswith("/static"):
                assert headers["cache-control"] == "no-store"
            assert "strict-transport-security" not in headers


async def test_no_page_needs_a_script_or_a_style_of_its_own(desk):
    token = await desk.add("ada@example.com", *Role)
    async with desk.client(cookies={"perdure-console": token}) as client:
        for path in (
            "/",
            "/alerts",
            "/signin",
            "/sagas",
            "/approvals",
            "/schedules",
            "/people",
            "/account",
            "/invocations",
        ):
            html = (await client.get(path)).text
            assert "<h1" in html
            assert re.findall(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style|javascript:", html) == []
            assert set(re.findall(r'(?:src|href)="(\w+:)?//', html)) == set(), "nothing comes from elsewhere"


async def test_over_https_the_cookie_is_for_https_alone(open_desk):
    async with open_desk(url="https://console.example.com") as desk:
        await desk.add("ada@example.com")
        async with desk.client() as client:
            answer = await client.post("/signin", data={"name": "Ada@Example.com", "password": PASSWORD})
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-perdure=")
            for part in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"):
                assert part in cookie
            assert "Domain" not in cookie
            assert answer.headers["strict-transport-security"]


@pytest.mark.parametrize("url", ["http://console.example.com", "http://10.0.0.7:8088", "ftp://x", "console"])
def test_passwords_over_plain_http_beyond_this_machine_are_refused_at_the_start(url, tmp_path):
    with pytest.raises(ConfigurationError, match="PERDURE_CONSOLE_URL"):
        settings_of(tmp_path, url=url).check()


def test_cheap_password_hashes_stay_on_this_machine(tmp_path):
    settings_of(tmp_path, password_memory=64).check()
    with pytest.raises(ConfigurationError, match="PERDURE_CONSOLE_PASSWORD_MEMORY=64"):
        settings_of(
            tmp_path, url="https://console.example.com", trusted_proxies=["10.0.0.5/32"], password_memory=64
        ).check()


def test_a_setting_that_does_not_fit_is_told_by_its_variable(monkeypatch):
    monkeypatch.setenv("PERDURE_CONSOLE_PORT", "many")
    with pytest.raises(ConfigurationError, match="PERDURE_CONSOLE_PORT"):
        ConsoleSettings.read()


@pytest.mark.parametrize(
    ("to", "goes"),
    [
        ("/sagas?phase=orphaned", "/sagas?phase=orphaned"),
        ("//evil.test", "/"),
        ("/\\evil.test", "/"),
        ("https://evil.test", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nset-cookie: x", "/"),
        ("", "/"),
    ],
)
async def test_signing_in_leads_nowhere_else(desk, to, goes):
    await desk.add("ada@example.com")
    async with desk.client() as client:
        answer = await client.post("/signin", data={"name": "ada@example.com", "password": PASSWORD, "to": to})
        assert (answer.status_code, answer.headers["location"]) == (303, goes)


async def test_without_an_engine_pages_and_api_say_so_and_the_rest_works(desk):
    token = await desk.add("ada@example.com", *Role)
    async with desk.client(cookies={"perdure-console": token}) as client:
        overview = await client.get("/")
        assert overview.status_code == 200
        assert "is the engine running?" in overview.text
        for path in ("/sagas", "/approvals", "/dead-letters", "/invocations", "/services"):
            page = await client.get(path)
            assert page.status_code == 503, path
            assert "Out of reach" in page.text
            assert "Traceback" not in page.text
        api = await client.get("/api/sagas")
        assert (api.status_code, api.json()["code"]) == (503, "engine_down")
        assert (await client.get("/people")).status_code == 200
        assert (await client.get("/ready")).status_code == 200


async def test_a_fault_shows_no_trace(desk, monkeypatch):
    token = await desk.add("ada@example.com", *Role)

    async def broken(*_):
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(type(desk.parts.persons), "all", broken)
    async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:
        for path in ("/api/people", "/people"):
            answer = await client.get(path)
            assert answer.status_code == 500
            assert "secret of the inside" not in answer.text
            assert "its log says more" in answer.text


async def test_a_request_that_carries_too_much_is_refused_whatever_it_announces(desk):
    async def endless():
        for _ in range(40):
            yield b"x" * 100_000

    async with desk.client() as client:
        announced = await client.post("/api/session", content=b"x" * 3_000_000)
        assert (announced.status_code, announced.json()["code"]) == (413, "too_large")
        silent = await client.post("/api/session", content=endless(), headers={"content-type": "application/json"})
        assert 400 <= silent.status_code < 500

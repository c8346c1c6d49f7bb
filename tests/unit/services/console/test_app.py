"""Access to every route by role, forged requests, security headers, cookies and error pages."""

from __future__ import annotations

import asyncio
import re
import threading

import httpx
import pytest

from perdure.errors import ConfigurationError
from services.console.app import create_app
from services.console.auth.roles import Role, is_permitted
from services.console.dependencies import role_of_route
from services.console.settings import ConsoleSettings
from tests.support import until_sqlite_threads_end
from tests.unit.services.console.conftest import PASSWORD, settings_of

PUBLIC = None
VIEWER, APPROVER, OPERATOR, ADMINISTRATOR = Role

# The role that each route requires. A route that is missing here fails the test.
ROUTES: dict[str, Role | None] = {
    "GET /health": PUBLIC,
    "GET /ready": PUBLIC,
    "GET /signin": PUBLIC,
    "POST /signin": PUBLIC,
    "GET /l/{token}": PUBLIC,
    "POST /l/{token}": PUBLIC,
    "POST /api/session": PUBLIC,
    "GET /": VIEWER,
    "POST /signout": VIEWER,
    "POST /signout-everywhere": VIEWER,
    "GET /account": VIEWER,
    "POST /account/password": VIEWER,
    "GET /alerts": VIEWER,
    "GET /alerts/events": VIEWER,
    "GET /alerts/count": VIEWER,
    "POST /alerts/{invocation_id}/{action}": OPERATOR,
    "GET /sagas": VIEWER,
    "GET /sagas/{saga_id:path}/events": VIEWER,
    "GET /sagas/{saga_id:path}": VIEWER,
    "GET /approvals": VIEWER,
    "GET /approvals/{approval_id:path}": VIEWER,
    "POST /approvals/{approval_id:path}/delegate": APPROVER,
    "POST /approvals/{approval_id:path}/revoke-links": VIEWER,  # the service checks the owner of the links
    "POST /approvals/{approval_id:path}/{decision}": APPROVER,
    "GET /dead-letters": VIEWER,
    "GET /dead-letters/{letter_id:path}": VIEWER,
    "POST /dead-letters": OPERATOR,
    "POST /dead-letters/{letter_id:path}/compare": OPERATOR,
    "POST /dead-letters/{letter_id:path}/{action}": OPERATOR,
    "GET /held-steps": VIEWER,
    "GET /held-steps/{held_step_id:path}": VIEWER,
    "POST /held-steps": OPERATOR,
    "POST /held-steps/{held_step_id:path}/{action}": OPERATOR,
    "GET /invocations": VIEWER,
    "POST /invocations/{invocation_id}/{action}": OPERATOR,
    "GET /services": VIEWER,
    "GET /schedules": VIEWER,
    "POST /schedules/{name:path}/{action}": OPERATOR,
    "GET /users": ADMINISTRATOR,
    "POST /users": ADMINISTRATOR,
    "POST /users/{name}": ADMINISTRATOR,
    "POST /users/{name}/password": ADMINISTRATOR,
    "POST /users/{name}/revoke-links": ADMINISTRATOR,
    "GET /keys": ADMINISTRATOR,
    "POST /keys": ADMINISTRATOR,
    "POST /keys/{name}/revoke": ADMINISTRATOR,
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
    "POST /api/dead-letters/{letter_id:path}/{action}": OPERATOR,
    "GET /api/held-steps": VIEWER,
    "GET /api/held-steps/{held_step_id:path}": VIEWER,
    "POST /api/held-steps": OPERATOR,
    "POST /api/held-steps/{held_step_id:path}/{action}": OPERATOR,
    "GET /api/invocations": VIEWER,
    "POST /api/invocations/{invocation_id}/{action}": OPERATOR,
    "GET /api/services": VIEWER,
    "GET /api/schedules": VIEWER,
    "GET /api/schedules/{name:path}": VIEWER,
    "POST /api/schedules/{name:path}/{action}": OPERATOR,
    "GET /api/users": ADMINISTRATOR,
    "GET /api/users/actions": ADMINISTRATOR,
    "POST /api/users": ADMINISTRATOR,
    "PATCH /api/users/{name}": ADMINISTRATOR,
    "POST /api/users/{name}/password": ADMINISTRATOR,
    "POST /api/users/{name}/revoke-links": ADMINISTRATOR,
    "DELETE /api/users/{name}/sessions": ADMINISTRATOR,
    "GET /api/keys": ADMINISTRATOR,
    "POST /api/keys": ADMINISTRATOR,
    "DELETE /api/keys/{name}": ADMINISTRATOR,
}
ENDLESS = {"GET /alerts/events", "GET /sagas/{saga_id:path}/events", "GET /api/alerts/events"}
SAMPLE = {"action": "resume", "decision": "approve", "letter_id": "T1/2", "name": "unknown"}


def routes_of(app):
    included = [getattr(getattr(one, "original_router", None), "routes", [one]) for one in app.routes]
    for route in [each for routes in included for each in routes]:
        if hasattr(route, "dependant"):
            for method in route.methods:
                yield f"{method} {route.path}", route


def path_of(path: str) -> str:
    sample = SAMPLE | {"action": "skip"} if "/dead-letters" in path else SAMPLE
    sample = sample | {"action": "retry"} if "/held-steps" in path else sample
    return re.sub(r"{(\w+)(:path)?}", lambda found: sample.get(found[1], "T1"), path)


def test_every_route_has_expected_role(tmp_path):
    app = create_app(settings_of(tmp_path))
    assert {name: role_of_route(route) for name, route in routes_of(app)} == ROUTES


async def test_routes_reject_other_roles(console):
    for role in Role:
        await console.add(f"{role.value}@example.com", role)

    async def open_stream(_, path, headers):
        """Request an endless stream, and disconnect after its first data."""
        answer = httpx.Response(500)
        disconnected = asyncio.Event()

        async def receive():
            await disconnected.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            nonlocal answer
            if message["type"] == "http.response.start":
                answer = httpx.Response(message["status"], headers=message["headers"])
            answer = httpx.Response(answer.status_code, content=answer.content + message.get("body", b""))
            disconnected.set()

        raw = [(key.encode(), value.encode()) for key, value in headers.items()]
        scope = {"type": "http", "method": "GET", "path": path, "headers": raw, "query_string": b"", "root_path": ""}
        async with asyncio.timeout(10):
            await console.app(scope, receive, send)
        return answer

    async with console.client() as client:
        for name, needed in ROUTES.items():
            if needed is PUBLIC:
                continue
            method, path = name.split(" ")
            send_request = open_stream if name in ENDLESS else client.request
            anonymous = await client.request(method, path_of(path))
            is_api = path.startswith("/api")
            assert anonymous.status_code == (401 if is_api else 303), name
            if not is_api:
                assert anonymous.headers["location"].startswith("/signin")
            for role in Role:
                token = await console.token(f"{role.value}@example.com")  # some routes end all sessions
                headers = {"authorization": f"Bearer {token}"}
                answer = await send_request(method, path_of(path), headers=headers)
                if is_permitted(frozenset({role}), needed):
                    assert answer.status_code not in (401, 403), (name, role, answer.text)
                    assert answer.status_code != 500, (name, role)
                else:
                    assert answer.status_code == 403, (name, role)
                    assert f"equires role '{needed.value}'" in answer.text.replace("&#39;", "'")


async def test_cookie_needs_csrf_token(console):
    token = await console.add("ada@example.com", Role.ADMINISTRATOR)
    session = await console.components.sessions.find(token)
    new = {"name": "eve@example.com", "password": PASSWORD, "roles": ["viewer"]}
    async with console.client(cookies={"perdure-console": token}) as client:
        for headers in ({}, {"x-csrf-token": "forged"}, {"x-csrf-token": ""}):
            answer = await client.post("/api/users", json=new, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "csrf")
        form = {**new, "csrf": "forged"}
        assert (await client.post("/users", data=form)).status_code == 403
        assert (await client.post("/users", data=new)).status_code == 403
        assert [each.name for each in await console.components.users.all()] == ["ada@example.com"]

        done = await client.post("/users", data={**new, "csrf": session.csrf})
        assert done.status_code == 303, done.text
        other = {**new, "name": "bob@example.com"}
        done = await client.post("/api/users", json=other, headers={"x-csrf-token": session.csrf})
        assert done.status_code == 201
        assert len(await console.components.users.all()) == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.test"},
        {"origin": "null"},
    ],
)
async def test_reject_requests_of_other_sites(console, headers):
    token = await console.add("ada@example.com")
    session = await console.components.sessions.find(token)
    async with console.client(headers=headers) as client:
        credentials = {"name": "ada@example.com", "password": PASSWORD}
        assert (await client.post("/signin", data=credentials)).status_code == 403
        assert (await client.post("/api/session", json=credentials)).status_code == 403
        client.cookies.set("perdure-console", token)
        answer = await client.post("/signout", data={"csrf": session.csrf})
        assert answer.status_code == 403
        assert await console.components.sessions.find(token) is not None


async def test_responses_have_security_headers(console):
    async with console.client() as client:
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


async def test_pages_have_no_inline_scripts_or_styles(console):
    token = await console.add("ada@example.com", *Role)
    async with console.client(cookies={"perdure-console": token}) as client:
        for path in (
            "/",
            "/alerts",
            "/signin",
            "/sagas",
            "/approvals",
            "/schedules",
            "/users",
            "/account",
            "/invocations",
        ):
            html = (await client.get(path)).text
            assert "<h1" in html
            assert re.findall(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style|javascript:", html) == []
            assert set(re.findall(r'(?:src|href)="(\w+:)?//', html)) == set(), "no resources of other sites"


async def test_https_cookie_is_secure(open_console):
    async with open_console(url="https://console.example.com") as console:
        await console.add("ada@example.com")
        async with console.client() as client:
            answer = await client.post("/signin", data={"name": "Ada@Example.com", "password": PASSWORD})
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-perdure=")
            for part in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"):
                assert part in cookie
            assert "Domain" not in cookie
            assert answer.headers["strict-transport-security"]


@pytest.mark.parametrize("url", ["http://console.example.com", "http://10.0.0.7:8088", "ftp://x", "console"])
def test_reject_plain_http_url(url, tmp_path):
    with pytest.raises(ConfigurationError, match="PERDURE_CONSOLE_URL"):
        settings_of(tmp_path, url=url).check()


def test_weak_password_hash_requires_loopback(tmp_path):
    settings_of(tmp_path, password_memory=64).check()
    with pytest.raises(ConfigurationError, match="PERDURE_CONSOLE_PASSWORD_MEMORY=64"):
        settings_of(
            tmp_path, url="https://console.example.com", trusted_proxies=["10.0.0.5/32"], password_memory=64
        ).check()


def test_invalid_setting_names_its_variable(monkeypatch):
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
async def test_sign_in_redirects_only_to_local_paths(console, to, goes):
    await console.add("ada@example.com")
    async with console.client() as client:
        answer = await client.post("/signin", data={"name": "ada@example.com", "password": PASSWORD, "to": to})
        assert (answer.status_code, answer.headers["location"]) == (303, goes)


async def test_engine_outage_is_reported(console):
    token = await console.add("ada@example.com", *Role)
    async with console.client(cookies={"perdure-console": token}) as client:
        overview = await client.get("/")
        assert overview.status_code == 200
        assert "check that the engine is running" in overview.text
        for path in ("/sagas", "/approvals", "/dead-letters", "/invocations", "/services"):
            page = await client.get(path)
            assert page.status_code == 503, path
            assert "Unavailable" in page.text
            assert "Traceback" not in page.text
        api = await client.get("/api/sagas")
        assert (api.status_code, api.json()["code"]) == (503, "engine_down")
        assert (await client.get("/users")).status_code == 200
        assert (await client.get("/ready")).status_code == 200


async def test_database_outage_is_named(console, tmp_path):
    before = threading.enumerate()
    headers = {"authorization": f"Bearer {await console.add('vera', Role.ADMINISTRATOR)}"}
    file = console.components.settings.database_file
    await console.components.database.dispose()
    file.parent.rename(tmp_path / "moved")
    cause = f"the database {file} cannot be opened"
    async with console.client(headers=headers) as client:
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": cause})
        for path in ("/api/users", "/gateway/Trips/t1/run"):
            answer = await client.request("GET" if path.startswith("/api") else "POST", path)
            assert answer.status_code == 503
            assert answer.json() == {"code": "database_unavailable", "message": f"{cause}; try again later"}
        client.cookies.set("perdure-console", "a token")
        page = await client.get("/sagas")
        assert page.status_code == 503
        assert "cannot be opened" in page.text
    (tmp_path / "moved").rename(file.parent)
    await console.components.database.dispose()
    await until_sqlite_threads_end(before)


async def test_internal_error_hides_details(console, monkeypatch):
    token = await console.add("ada@example.com", *Role)

    async def broken(*_):
        raise RuntimeError("an internal secret")

    monkeypatch.setattr(type(console.components.users), "all", broken)
    async with console.client(headers={"authorization": f"Bearer {token}"}) as client:
        for path in ("/api/users", "/users"):
            answer = await client.get(path)
            assert answer.status_code == 500
            assert "internal secret" not in answer.text
            assert "its log has the details" in answer.text


async def test_reject_large_requests(console):
    async def endless():
        for _ in range(40):
            yield b"x" * 100_000

    async with console.client() as client:
        announced = await client.post("/api/session", content=b"x" * 3_000_000)
        assert (announced.status_code, announced.json()["code"]) == (413, "too_large")
        silent = await client.post("/api/session", content=endless(), headers={"content-type": "application/json"})
        assert 400 <= silent.status_code < 500

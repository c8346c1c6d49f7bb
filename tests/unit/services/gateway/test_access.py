"""Access to the gateway, and API keys."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from services.console.auth.roles import Role
from services.console.engine import EngineClient
from services.console.problems import ConsoleError
from tests.support import PATIENCE, eventually


async def test_api_key_is_stored_as_hash(console, tmp_path):
    token = await console.add("ada@example.com", Role.ADMINISTRATOR)
    async with console.client(headers={"authorization": f"Bearer {token}"}) as client:
        wanted = {"name": "shop", "handlers": ["Trips/run", "Trips/status", "Trips/run"], "days": 30}
        made = await client.post("/api/keys", json=wanted)
        assert made.status_code == 201
        secret = made.json()["secret"]
        assert secret.startswith("pdk_")
        assert made.json()["key"]["handlers"] == ["Trips/run", "Trips/status"]
        assert made.json()["key"]["created_by"] == "ada@example.com"
        assert (await client.post("/api/keys", json=wanted)).status_code == 409

        listed = await client.get("/api/keys")
        assert [key["name"] for key in listed.json()] == ["shop"]
        assert secret not in listed.text
        found = await console.components.api_keys.find(secret)
        assert found.permits("Trips/run")
        assert not found.permits("Trips/roll_back")
        assert not found.permits("TripsCompensations/run")
        assert all(secret.encode() not in file.read_bytes() for file in tmp_path.rglob("console.db*"))

        console.clock.move(timedelta(days=30))
        assert await console.components.api_keys.find(secret) is None

    token = await console.token("ada@example.com")
    async with console.client(headers={"authorization": f"Bearer {token}"}) as client:
        assert (await client.delete("/api/keys/shop")).status_code == 204
        assert (await client.delete("/api/keys/shop")).status_code == 404
        actions = (await client.get("/api/users/actions")).json()
        assert [(entry["action"], entry["subject"]) for entry in actions[:2]] == [
            ("revoke key", "shop"),
            ("create key", "shop"),
        ]


async def test_page_shows_new_api_key_once(console):
    token = await console.add("ada@example.com", Role.ADMINISTRATOR)
    async with console.client(headers={"authorization": f"Bearer {token}"}) as client:
        made = await client.post("/keys", data={"name": "shop", "handlers": "Trips/run\nTrips/status", "days": "30"})
        assert made.status_code == 200
        (secret,) = set(re.findall(r"pdk_[\w-]{20,}", made.text))
        assert (await console.components.api_keys.find(secret)).handlers == ["Trips/run", "Trips/status"]
        again = await client.get("/keys")
        assert "Trips/<wbr>status" in again.text
        assert secret not in again.text
        for days in ("0", "soon", "3651"):
            rejected = await client.post("/keys", data={"name": "till", "handlers": "Trips/run", "days": days})
            assert rejected.status_code == 400
            assert "1 to 3650 days" in rejected.text
        assert (await client.post("/keys/shop/revoke")).status_code == 303
        assert await console.components.api_keys.find(secret) is None


@pytest.mark.parametrize("handlers", [[], ["*"], ["*/*"], ["Trips"], ["Trips/r*"], ["Trips/run/send"], ["Tr[a]ps/run"]])
async def test_reject_imprecise_handlers(console, handlers):
    with pytest.raises(ConsoleError, match="Service/handler"):
        await console.components.api_keys.add("shop", handlers, by="a test")


async def test_api_key_for_a_whole_service(console):
    secret, _ = await console.components.api_keys.add("shop", ["Trips/*"], by="a test")
    found = await console.components.api_keys.find(secret)
    assert found.permits("Trips/run")
    assert not found.permits("Trips2/run")
    assert not found.permits("DeadLetters/list")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer pdk_")],
        [("authorization", "Bearer pdk_unknown")],
        [("authorization", "Bearer unknown")],
        [("authorization", "Basic {key}")],
        [("authorization", "{key}")],
        [("x-api-key", "{key}")],
        [("authorization", "Bearer {key}"), ("authorization", "Bearer {key}")],
        [("cookie", "perdure-console={session}")],
    ],
)
async def test_reject_unauthenticated_callers(console, headers):
    session = await console.add("ada@example.com", *Role)
    key, _ = await console.components.api_keys.add("shop", ["Trips/run"], by="a test")
    sent = [(name, value.format(key=key, session=session)) for name, value in headers]
    async with console.client() as client:
        answer = await client.post("/gateway/Trips/t1/run", headers=sent, json={})
        assert (answer.status_code, answer.json()["code"]) == (401, "sign_in")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_engine_outage_is_reported(console):
    session = await console.add("ada@example.com", *Role)
    key, _ = await console.components.api_keys.add("shop", ["Trips/run"], by="a test")
    async with console.client() as client:
        for token in (session, key):
            answer = await client.post("/gateway/Trips/t1/run", headers={"authorization": f"Bearer {token}"}, json={})
            assert (answer.status_code, answer.json()["code"]) == (503, "engine_down")


async def test_rate_is_limited(open_console):
    async with open_console(gateway_rate="2/hour") as console:
        key, _ = await console.components.api_keys.add("shop", ["Trips/run"], by="a test")
        async with console.client(headers={"authorization": f"Bearer {key}"}) as client:
            statuses = [(await client.post("/gateway/Trips/t1/run")).status_code for _ in range(3)]
            assert statuses == [503, 503, 429]
            assert int((await client.post("/gateway/Trips/t1/run")).headers["retry-after"]) > 1


class SlowEngine:
    """An engine whose only handler does not return until released."""

    def __init__(self) -> None:
        self.url = ""
        self.calls = 0
        self.released = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[SlowEngine]:
        engine = cls()
        server = await asyncio.start_server(engine._serve, "127.0.0.1", 0)
        engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield engine

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        if path == b"/Slow/go":
            self.calls += 1
            await self.released.wait()
        answer = {"rows": [], "services": [{"name": "Slow", "ty": "Service", "handlers": [{"name": "go"}]}]}
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()


async def test_slow_calls_do_not_block_pages(open_console):
    async with (
        SlowEngine.running() as engine,
        open_console(ingress_url=engine.url, admin_url=engine.url) as console,
        console.client() as client,
        asyncio.TaskGroup() as waiting,
    ):
        for name in ("shop", "till", "stock"):
            key, _ = await console.components.api_keys.add(name, ["Slow/*"], by="a test")
            for _ in range(console.components.settings.gateway_at_once):
                headers = {"authorization": f"Bearer {key}"}
                waiting.create_task(client.post("/gateway/Slow/go", headers=headers))

        async def all_waiting() -> bool:
            return engine.calls >= 3 * console.components.settings.gateway_at_once

        await eventually(all_waiting, what="waiting call")
        headers = {"authorization": f"Bearer {await console.add('ada@example.com')}"}
        async with asyncio.timeout(PATIENCE):
            alerts = await client.get("/api/alerts", headers=headers)
        assert alerts.json()["problems"] == []
        engine.released.set()


MARK = {"perdure.read_only": "true"}
# The engine's registered services.
DISCOVERED: list[dict[str, Any]] = [
    {
        "name": "Documents",
        "ty": "Workflow",
        "handlers": [
            {"name": "run", "ty": "Workflow", "metadata": MARK},  # can write state, whatever its metadata
            {"name": "review", "ty": "Shared"},  # resolves a promise of the main handler
            {"name": "shelve", "ty": "Shared", "metadata": {"perdure.read_only": "false", "team": "press"}},
            {"name": "status", "ty": "Shared", "metadata": {**MARK, "team": "press"}},
        ],
    },
    {
        "name": "Carts",
        "ty": "VirtualObject",
        "handlers": [
            {"name": "add", "ty": "Exclusive", "metadata": MARK},
            {"name": "order", "ty": "Shared", "metadata": None},
            {"name": "show", "ty": "Shared", "metadata": MARK},
        ],
    },
    {
        "name": "Stock",
        "ty": "Service",
        "handlers": [{"name": "take", "metadata": {}}, {"name": "count", "ty": None, "metadata": MARK}],
    },
]
READS = ["Carts/c1/show", "Documents/d1/status", "Stock/count"]
CHANGES = [
    "Carts/c1/add",
    "Carts/c1/order",
    "Documents/d1/review",
    "Documents/d1/run",
    "Documents/d1/shelve",
    "Stock/take",
]


async def test_only_operators_call_handlers_that_write(console):
    forwarded: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/services":
            return httpx.Response(200, json={"services": DISCOVERED})
        forwarded.append(request.url.path.removeprefix("/").removesuffix("/send"))
        return httpx.Response(200, json={})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http, console.client() as client:
        engine = EngineClient("http://ingress.test", "http://admin.test", http)
        console.app.state.components = dataclasses.replace(console.components, engine=engine)
        for role in (Role.VIEWER, Role.APPROVER, Role.ADMINISTRATOR):
            headers = {"authorization": f"Bearer {await console.add(f'{role}@example.com', role)}"}
            for path in CHANGES:
                for suffix in ("", "/send"):
                    rejected = await client.post(f"/gateway/{path}{suffix}", headers=headers, json="approved")
                    assert (rejected.status_code, rejected.json().get("role")) == (403, "operator"), path
            assert forwarded == []
            for path in READS:
                assert (await client.post(f"/gateway/{path}", headers=headers)).status_code == 200, path
            assert forwarded == READS
            forwarded.clear()

        headers = {"authorization": f"Bearer {await console.add('olga@example.com', Role.OPERATOR)}"}
        for path in (*CHANGES, *READS):
            assert (await client.post(f"/gateway/{path}", headers=headers)).status_code == 200, path
        assert forwarded == [*CHANGES, *READS]

        # An API key names its handlers.
        key, _ = await console.components.api_keys.add("press", ["Documents/review"], by="a test")
        headers = {"authorization": f"Bearer {key}"}
        assert (await client.post("/gateway/Documents/d1/review", headers=headers)).status_code == 200
        assert (await client.post("/gateway/Documents/d1/status", headers=headers)).status_code == 403


TYPED: list[dict[str, Any]] = [
    {
        "name": "Documents",
        "ty": "Workflow",
        "handlers": [
            {
                "name": "run",
                "ty": "Workflow",
                "input_json_schema": {
                    "type": "object",
                    "properties": {"title": {"type": "string"}, "pages": {"type": "integer"}},
                    "required": ["title"],
                },
            }
        ],
    }
]


async def test_mistaken_request_keeps_workflow_key(console):
    forwarded: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/services":
            return httpx.Response(200, json={"services": TYPED})
        forwarded.append(request.content)
        problem = {"code": 409, "message": "the workflow method was already invoked"}
        return httpx.Response(409, json=problem, headers={"x-restate-error-source": "invocation"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http, console.client() as client:
        engine = EngineClient("http://ingress.test", "http://admin.test", http)
        console.app.state.components = dataclasses.replace(console.components, engine=engine)
        token = await console.add("olga@example.com", Role.OPERATOR)
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        for body, problem in (
            (b"", "is null, not an object"),
            (b"{", "the body is not JSON"),
            (b"[]", "is an array, not an object"),
            (b'{"pages": 1}', "title is missing"),
            (b'{"title": "a", "pages": "many"}', "pages is a string, not an integer"),
        ):
            for suffix in ("", "/send"):
                rejected = await client.post(f"/gateway/Documents/d1/run{suffix}", headers=headers, content=body)
                assert rejected.status_code == 400
                assert problem in rejected.json()["message"]
        assert forwarded == []

        reused = await client.post("/gateway/Documents/d1/run", headers=headers, content=b'{"title": "a"}')
        assert (reused.status_code, len(forwarded)) == (409, 1)
        assert reused.json()["message"].endswith("Attach with GET /gateway/restate/workflow/Documents/d1/attach")

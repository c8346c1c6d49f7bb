"""Who may use the gateway, before anything reaches an engine; and keys of programs."""

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

from services.console.engine import Engine
from services.console.people.roles import Role
from services.console.problems import ConsoleError
from tests.support import eventually


async def test_an_administrator_makes_a_key_and_only_its_hash_is_kept(desk, tmp_path):
    token = await desk.add("ada@example.com", Role.ADMINISTRATOR)
    async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:
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
        found = await desk.parts.api_keys.find(secret)
        assert found.allows("Trips/run")
        assert not found.allows("Trips/roll_back")
        assert not found.allows("TripsCompensations/run")
        assert all(secret.encode() not in file.read_bytes() for file in tmp_path.rglob("console.db*"))

        desk.clock.move(timedelta(days=30))
        assert await desk.parts.api_keys.find(secret) is None

    token = await desk.token("ada@example.com")
    async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:
        assert (await client.delete("/api/keys/shop")).status_code == 204
        assert (await client.delete("/api/keys/shop")).status_code == 404
        acts = (await client.get("/api/people/acts")).json()
        assert [(act["act"], act["person"]) for act in acts[:2]] == [("remove key", "shop"), ("key", "shop")]


async def test_a_key_that_is_made_on_the_page_is_shown_this_once_and_ended_there(desk):
    token = await desk.add("ada@example.com", Role.ADMINISTRATOR)
    async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:
        made = await client.post("/keys", data={"name": "shop", "handlers": "Trips/run\nTrips/status", "days": "30"})
        assert made.status_code == 200
        (secret,) = set(re.findall(r"pdk_[\w-]{20,}", made.text))
        assert (await desk.parts.api_keys.find(secret)).handlers == ["Trips/run", "Trips/status"]
        again = await client.get("/keys")
        assert "Trips/<wbr>status" in again.text
        assert secret not in again.text
        for days in ("0", "soon", "3651"):
            refused = await client.post("/keys", data={"name": "till", "handlers": "Trips/run", "days": days})
            assert refused.status_code == 400
            assert "1 to 3650 days" in refused.text
        assert (await client.post("/keys/shop/remove")).status_code == 303
        assert await desk.parts.api_keys.find(secret) is None


@pytest.mark.parametrize("handlers", [[], ["*"], ["*/*"], ["Trips"], ["Trips/r*"], ["Trips/run/send"], ["Tr[a]ps/run"]])
async def test_a_key_says_exactly_what_it_is_for(desk, handlers):
    with pytest.raises(ConsoleError, match="Service/handler"):
        await desk.parts.api_keys.add("shop", handlers, by="a test")


async def test_a_key_for_a_service_is_for_all_of_its_handlers_and_no_other(desk):
    secret, _ = await desk.parts.api_keys.add("shop", ["Trips/*"], by="a test")
    found = await desk.parts.api_keys.find(secret)
    assert found.allows("Trips/run")
    assert not found.allows("Trips2/run")
    assert not found.allows("DeadLetters/list")


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
async def test_nobody_unknown_gets_past_the_gateway(desk, headers):
    session = await desk.add("ada@example.com", *Role)
    key, _ = await desk.parts.api_keys.add("shop", ["Trips/run"], by="a test")
    sent = [(name, value.format(key=key, session=session)) for name, value in headers]
    async with desk.client() as client:
        answer = await client.post("/gateway/Trips/t1/run", headers=sent, json={})
        assert (answer.status_code, answer.json()["code"]) == (401, "sign_in")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_who_is_known_is_told_that_the_engine_is_down(desk):
    session = await desk.add("ada@example.com", *Role)
    key, _ = await desk.parts.api_keys.add("shop", ["Trips/run"], by="a test")
    async with desk.client() as client:
        for token in (session, key):
            answer = await client.post("/gateway/Trips/t1/run", headers={"authorization": f"Bearer {token}"}, json={})
            assert (answer.status_code, answer.json()["code"]) == (503, "engine_down")


async def test_who_asks_too_often_is_told_to_slow_down(open_desk):
    async with open_desk(gateway_rate="2/hour") as desk:
        key, _ = await desk.parts.api_keys.add("shop", ["Trips/run"], by="a test")
        async with desk.client(headers={"authorization": f"Bearer {key}"}) as client:
            statuses = [(await client.post("/gateway/Trips/t1/run")).status_code for _ in range(3)]
            assert statuses == [503, 503, 429]
            assert int((await client.post("/gateway/Trips/t1/run")).headers["retry-after"]) > 1


class SlowEngine:
    """An engine that answers the console, and keeps whoever calls its one handler waiting."""

    def __init__(self) -> None:
        self.url = ""
        self.calls = 0
        self.over = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[SlowEngine]:
        engine = cls()
        server = await asyncio.start_server(engine._serve, "127.0.0.1", 0)
        engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield engine

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        if asked == b"/Slow/go":
            self.calls += 1
            await self.over.wait()
        answer = {"rows": [], "services": [{"name": "Slow", "ty": "Service", "handlers": [{"name": "go"}]}]}
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()


async def test_programs_that_wait_for_slow_handlers_leave_people_their_way_to_the_engine(open_desk):
    async with (
        SlowEngine.running() as engine,
        open_desk(ingress_url=engine.url, admin_url=engine.url) as desk,
        desk.client() as client,
        asyncio.TaskGroup() as waiting,
    ):
        for name in ("shop", "till", "stock"):
            key, _ = await desk.parts.api_keys.add(name, ["Slow/*"], by="a test")
            for _ in range(desk.parts.settings.gateway_at_once):
                headers = {"authorization": f"Bearer {key}"}
                waiting.create_task(client.post("/gateway/Slow/go", headers=headers))

        async def all_wait() -> bool:
            return engine.calls == 3 * desk.parts.settings.gateway_at_once

        await eventually(all_wait, what="calls that wait")
        headers = {"authorization": f"Bearer {await desk.add('ada@example.com')}"}
        async with asyncio.timeout(5):
            alerts = await client.get("/api/alerts", headers=headers)
        assert alerts.json()["problems"] == []
        engine.over.set()


MARK = {"perdure.read_only": "true"}
# What an engine says of its services.
DISCOVERED: list[dict[str, Any]] = [
    {
        "name": "Documents",
        "ty": "Workflow",
        "handlers": [
            {"name": "run", "ty": "Workflow", "metadata": MARK},  # it has state to write, whatever it says
            {"name": "review", "ty": "Shared"},  # it resolves what the main handler waits for
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


async def test_a_session_of_any_role_calls_what_is_marked_as_reading_and_an_operators_the_rest(desk):
    forwarded: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/services":
            return httpx.Response(200, json={"services": DISCOVERED})
        forwarded.append(request.url.path.removeprefix("/").removesuffix("/send"))
        return httpx.Response(200, json={})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http, desk.client() as client:
        engine = Engine("http://ingress.test", "http://admin.test", http)
        desk.app.state.parts = dataclasses.replace(desk.parts, engine=engine)
        for role in (Role.VIEWER, Role.APPROVER, Role.ADMINISTRATOR):
            headers = {"authorization": f"Bearer {await desk.add(f'{role}@example.com', role)}"}
            for path in CHANGES:
                for way in ("", "/send"):
                    refused = await client.post(f"/gateway/{path}{way}", headers=headers, json="approved")
                    assert (refused.status_code, refused.json().get("role")) == (403, "operator"), path
            assert forwarded == []
            for path in READS:
                assert (await client.post(f"/gateway/{path}", headers=headers)).status_code == 200, path
            assert forwarded == READS
            forwarded.clear()

        headers = {"authorization": f"Bearer {await desk.add('olga@example.com', Role.OPERATOR)}"}
        for path in (*CHANGES, *READS):
            assert (await client.post(f"/gateway/{path}", headers=headers)).status_code == 200, path
        assert forwarded == [*CHANGES, *READS]

        # A key says by itself which handlers it is for.
        key, _ = await desk.parts.api_keys.add("press", ["Documents/review"], by="a test")
        headers = {"authorization": f"Bearer {key}"}
        assert (await client.post("/gateway/Documents/d1/review", headers=headers)).status_code == 200
        assert (await client.post("/gateway/Documents/d1/status", headers=headers)).status_code == 403

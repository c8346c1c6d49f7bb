"""Floods of requests to a served console, and their effect on other users."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from perdure._runtime.ports import free_ports
from services.console.app import create_app
from services.console.auth.roles import Role
from services.console.dependencies import Components
from tests.support import eventually
from tests.unit.services.console.conftest import CHEAP, PASSWORD, settings_of

ADA, BOB = "ada@example.com", "bob@example.com"


class Served:
    """A console in this process, behind a port."""

    def __init__(self, url: str, components: Components) -> None:
        self.url = url
        self.components = components

    async def session(self, name: str) -> str:
        token, _, _ = await self.components.sessions.start(name, address="127.0.0.1", agent="a test")
        return token

    async def until(self, open_streams: int) -> None:
        """Wait for a number of open streams."""
        await eventually(
            lambda: self.components.stream_limits.count == open_streams, what=f"{open_streams} open streams"
        )


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def served(hasher: Any = CHEAP, **changes: Any) -> AsyncIterator[Served]:
        (port,) = free_ports(1)
        app = create_app(settings_of(tmp_path, **changes), hasher=hasher)
        server = uvicorn.Server(
            uvicorn.Config(app, port=port, log_config=None, proxy_headers=False, timeout_graceful_shutdown=1)
        )
        running = asyncio.create_task(server.serve())
        try:
            await eventually(lambda: server.started, what="start of the console")
            for name in (ADA, BOB):
                await app.state.components.users.add(name, PASSWORD, [Role.VIEWER], by="a test")
            yield Served(f"http://127.0.0.1:{port}", app.state.components)
        finally:
            server.should_exit = True
            await running

    return served


@asynccontextmanager
async def clients() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=30, limits=limits) as http:
        yield http


async def open_streams(
    stack: AsyncExitStack, http: httpx.AsyncClient, served: Served, token: str, count: int
) -> list[httpx.Response]:
    headers = {"authorization": f"Bearer {token}", "accept": "text/event-stream"}

    async def one() -> httpx.Response:
        return await stack.enter_async_context(http.stream("GET", f"{served.url}/api/alerts/events", headers=headers))

    return [await one() for _ in range(count)]


async def test_streams_per_session_and_user_are_limited(serve):
    async with serve(streams_per_session=3, streams_per_user=5) as served, clients() as http:
        first, second, bobs = [await served.session(name) for name in (ADA, ADA, BOB)]
        async with AsyncExitStack() as stack:
            answers = await open_streams(stack, http, served, first, 5)
            assert [each.status_code for each in answers] == [200] * 3 + [429] * 2
            assert answers[-1].headers["retry-after"] == "10"
            assert "close one" in (await answers[-1].aread()).decode()
            answers = await open_streams(stack, http, served, second, 3)
            assert [each.status_code for each in answers] == [200] * 2 + [429]
            answers = await open_streams(stack, http, served, bobs, 1)
            assert [each.status_code for each in answers] == [200]
            await served.until(6)
        await served.until(0)
        async with AsyncExitStack() as stack:
            answers = await open_streams(stack, http, served, first, 3)
            assert [each.status_code for each in answers] == [200] * 3


async def test_total_streams_are_limited(serve):
    async with serve(streams=4) as served, clients() as http:
        ada, bob = await served.session(ADA), await served.session(BOB)
        async with AsyncExitStack() as stack:
            await open_streams(stack, http, served, ada, 4)
            (answer,) = await open_streams(stack, http, served, bob, 1)
            assert answer.status_code == 503
            async with http.stream("GET", f"{served.url}/health") as health:
                assert health.status_code == 200


async def test_concurrent_streams_are_limited(serve):
    async with serve(streams_per_session=12) as served, clients() as http:
        token = await served.session(ADA)
        async with AsyncExitStack() as stack:
            answers = await asyncio.gather(*(open_streams(stack, http, served, token, 1) for _ in range(120)))
            assert Counter(each.status_code for (each,) in answers) == {200: 12, 429: 108}
            assert served.components.stream_limits.count == 12
            other = await served.session(BOB)
            me = await http.get(f"{served.url}/api/session", headers={"authorization": f"Bearer {other}"})
            assert me.status_code == 200
        await served.until(0)


async def test_other_users_sign_in_during_flood(serve):
    # With production hashes, forty guesses fill both slots for ten seconds.
    async with serve(None, url="https://c.test", trusted_proxies="127.0.0.1/32") as served, clients() as http:

        async def sign_in(name: str, password: str, address: str) -> httpx.Response:
            return await http.post(
                f"{served.url}/api/session",
                json={"name": name, "password": password},
                headers={"x-forwarded-for": address},
            )

        flood = [asyncio.create_task(sign_in(f"guess-{each}", "wrong", "6.6.6.6")) for each in range(40)]
        answer = await sign_in(ADA, PASSWORD, "10.1.1.1")
        assert answer.status_code == 201
        statuses = Counter(each.status_code for each in await asyncio.gather(*flood))
        assert statuses.keys() == {401, 429}
        assert statuses[429] >= 10
        assert all("retry-after" in each.result().headers for each in flood if each.result().status_code == 429)


async def test_shared_proxy_causes_no_lockout(serve):
    async with serve(trusted_proxies="127.0.0.0/8", forwarded_header="forwarded") as served, clients() as http:

        async def sign_in(password: str, address: str) -> int:
            answer = await http.post(
                f"{served.url}/api/session",
                json={"name": ADA, "password": password},
                # The other header is forged by the client.
                headers={"forwarded": f"for=9.9.9.9, for={address};proto=https", "x-forwarded-for": "10.1.1.1"},
            )
            return answer.status_code

        assert [await sign_in("wrong", "6.6.6.6") for _ in range(30)] == [401] * 5 + [429] * 25
        assert await sign_in(PASSWORD, "10.1.1.1") == 201

"""Floods: password guesses and connections that could lock other users out of the console.

The platform trusts local proxies, so these requests imitate one. The last address of ``X-Forwarded-For`` is that of the
client.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Final
from uuid import uuid4

import httpx

from services.console.auth.passwords import Passwords
from services.console.auth.roles import Role
from services.console.auth.users import Users
from services.console.database import Database
from services.console.settings import ConsoleSettings
from tests.system.attacks.attack import Attack, status_of
from tests.system.attacks.platform import GRACE, HASHER, OLGA, VERA, DefendedPlatform

_PAGES: Final = 120


def _client() -> httpx.AsyncClient:
    """Return a client without cookies; a client that signed in would keep its session."""
    return httpx.AsyncClient(trust_env=False, timeout=30, limits=httpx.Limits(max_connections=None))


async def _sign_in(
    at: DefendedPlatform, name: str, password: str, address: str, *, headers: dict[str, str] | None = None
) -> httpx.Response:
    async with _client() as http:
        return await http.post(
            f"{at.topology.console_url}/api/session",
            json={"name": name, "password": password},
            headers={"x-forwarded-for": address, **(headers or {})},
        )


async def _new_user(at: DefendedPlatform) -> tuple[str, str]:
    """Add a user and return name and password."""
    name, password = f"{uuid4().hex}@example.com", uuid4().hex
    database = Database(ConsoleSettings(local_dir=at.topology.home).database)
    try:
        await Users(database, Passwords(HASHER)).add(name, password, [Role.VIEWER], by="attack")
    finally:
        await database.dispose()
    return name, password


async def _lock_out_behind_a_proxy(at: DefendedPlatform) -> str:
    name, password = await _new_user(at)
    for each in range(35):
        await _sign_in(at, f"guess-{each}", "wrong", "203.0.113.1")
    return status_of(await _sign_in(at, name, password, "198.51.100.1"))


async def _lock_out_of_a_name(at: DefendedPlatform) -> str:
    name, password = await _new_user(at)
    await _sign_in(at, name, password, "198.51.100.2")
    for network in range(21):
        for _ in range(5):
            await _sign_in(at, name, "wrong", f"203.0.113.{100 + network}")
    return status_of(await _sign_in(at, name, password, "198.51.100.2"))


async def _lock_out_by_hashing(at: DefendedPlatform) -> str:
    name, password = await _new_user(at)
    flood = [asyncio.create_task(_sign_in(at, f"guess-{each}", "wrong", "203.0.113.2")) for each in range(40)]
    answer = await _sign_in(at, name, password, "198.51.100.3")
    await asyncio.gather(*flood)
    return status_of(answer)


async def _guess_on(at: DefendedPlatform, *, invented: bool) -> str:
    """Guess Grace's password with a new browser or client address each time; return the last response."""
    seen = "203.0.113.4" if invented else "203.0.113.5"
    answers = [
        await _sign_in(
            at,
            GRACE,
            "wrong",
            f"198.51.100.{each}, {seen}" if invented else seen,
            headers={"forwarded": f"for=198.51.100.{each}", "cookie": f"perdure-console-device={uuid4().hex}"},
        )
        for each in range(8)
    ]
    return status_of(answers[-1])


async def _guess_ones_own_password(at: DefendedPlatform) -> str:
    headers = {"authorization": f"Bearer {at.sessions[OLGA]}"}
    body = {"old": "a guess of a password", "new": "another password of mine"}
    url = f"{at.topology.console_url}/api/password"
    answers = await asyncio.gather(*(at.http.post(url, json=body, headers=headers) for _ in range(10)))
    counts = Counter(each.status_code for each in answers)
    return "429" if counts[429] == 5 else f"{dict(counts)}"


async def _open_pages(at: DefendedPlatform) -> str:
    headers = {"authorization": f"Bearer {at.sessions[VERA]}", "accept": "text/event-stream"}
    url = f"{at.topology.console_url}/api/alerts/events"
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(_client())
        answers = await asyncio.gather(
            *(stack.enter_async_context(http.stream("GET", url, headers=headers)) for _ in range(_PAGES))
        )
        counts = Counter(each.status_code for each in answers)
        bound = ConsoleSettings().streams_per_session
        return "429" if counts == {200: bound, 429: _PAGES - bound} else f"{dict(counts)}"


async def _open_a_page_unseen(at: DefendedPlatform) -> str:
    async with _client() as http, http.stream("GET", f"{at.topology.console_url}/api/alerts/events") as answer:
        return str(answer.status_code)


FLOODS: Final = (
    Attack("floods", "another user signs in after wrong passwords behind a proxy", "201", _lock_out_behind_a_proxy),
    Attack("floods", "a user signs in after guesses from twenty networks", "201", _lock_out_of_a_name),
    Attack("floods", "another user signs in during forty guesses", "201", _lock_out_by_hashing),
    Attack("floods", "guesses from forged addresses", "429", lambda at: _guess_on(at, invented=True)),
    Attack("floods", "guesses by forged browsers", "429", lambda at: _guess_on(at, invented=False)),
    Attack("floods", "guesses of the old password in a stolen session", "429", _guess_ones_own_password),
    Attack("floods", "120 event streams of one session", "429", _open_pages),
    Attack("floods", "an event stream without a session", "401", _open_a_page_unseen),
)

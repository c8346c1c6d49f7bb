from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from services.console.parts import Parts
from services.console.people.roles import Role

from perdure._runtime.ports import free_ports
from services.console.app import create_app
from services.console.settings import ConsoleSettings

PASSWORD = "correct horse battery"  # noqa: S105 - of people who live as long as the test
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Clock:
    """A clock that stands still until it's moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, by: timedelta) -> None:
        self.now += by


class Desk:
    """A console in this process, whose engine nobody has started; and clients to it.

    Args:
        app: The console.
        clock: Its clock.
    """

    def __init__(self, app: FastAPI, clock: Clock) -> None:
        self.app = app
        self.clock = clock
        self.parts: Parts = app.state.parts

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        """Open a client without any session."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://console.test", **options) as client:
            yield client

    async def add(self, name: str, *roles: Role, groups: tuple[str, ...] = ()) -> str:
        """Add a person, and return a session's token."""
        await self.parts.persons.add(name, PASSWORD, roles or [Role.VIEWER], groups, by="a test")
        return await self.token(name)

    async def token(self, name: str) -> str:
        """Begin a session, and return its token."""
        token, _, _ = await self.parts.sessions.begin(name, address="127.0.0.1", agent="a test")
        return token


def settings_of(folder: Path, **changes: Any) -> ConsoleSettings:
    """Return settings of a console without an engine."""
    (port,) = free_ports(1)
    nobody = f"http://127.0.0.1:{port}"
    values = {"local_dir": folder, "ingress_url": nobody, "admin_url": nobody, **changes}
    return ConsoleSettings(**values)


@pytest.fixture
def open_desk(tmp_path: Path) -> Callable[..., Any]:
    """Opens consoles."""

    @asynccontextmanager
    async def opened(**changes: Any) -> AsyncIterator[Desk]:
        clock = Clock()
        app = create_app(settings_of(tmp_path, **changes), hasher=CHEAP, now=clock)
        async with app.router.lifespan_context(app):
            yield Desk(app, clock)

    return opened


@pytest.fixture
async def desk(open_desk: Callable[..., Any]) -> AsyncIterator[Desk]:
    """A console."""
    async with open_desk() as opened:
        yield opened

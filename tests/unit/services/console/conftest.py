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

from perdure._runtime.ports import free_ports
from services.console.app import create_app
from services.console.auth.roles import Role
from services.console.dependencies import Components
from services.console.settings import ConsoleSettings

PASSWORD = "correct horse battery"  # noqa: S105 - of temporary users
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Clock:
    """A clock that tests advance explicitly."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, by: timedelta) -> None:
        self.now += by


class Console:
    """A console in this process without an engine, and clients of it."""

    def __init__(self, app: FastAPI, clock: Clock) -> None:
        self.app = app
        self.clock = clock
        self.components: Components = app.state.components

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        """Open a client without a session."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://console.test", **options) as client:
            yield client

    async def add(self, name: str, *roles: Role, groups: tuple[str, ...] = ()) -> str:
        """Add a user, and return the token of a session."""
        await self.components.users.add(name, PASSWORD, roles or [Role.VIEWER], groups, by="a test")
        return await self.token(name)

    async def token(self, name: str) -> str:
        """Start a session, and return its token."""
        token, _, _ = await self.components.sessions.start(name, address="127.0.0.1", agent="a test")
        return token


def settings_of(folder: Path, **changes: Any) -> ConsoleSettings:
    """Return settings of a console without an engine."""
    (port,) = free_ports(1)
    closed_port = f"http://127.0.0.1:{port}"
    values = {"local_dir": folder, "ingress_url": closed_port, "admin_url": closed_port, **changes}
    return ConsoleSettings(**values)


@pytest.fixture
def open_console(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that opens a console."""

    @asynccontextmanager
    async def opened(**changes: Any) -> AsyncIterator[Console]:
        clock = Clock()
        app = create_app(settings_of(tmp_path, **changes), hasher=CHEAP, now=clock)
        async with app.router.lifespan_context(app):
            yield Console(app, clock)

    return opened


@pytest.fixture
async def console(open_console: Callable[..., Any]) -> AsyncIterator[Console]:
    """A console."""
    async with open_console() as opened:
        yield opened

"""Known browsers and addresses of users, as in OWASP's device cookies.

A browser receives a token with its first sign-in. The token does not replace the password. It gives the browser its own
count of failures, so attackers who guess the user's password, even from the same address, do not block the browser.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.console.auth.failed_sign_ins import network_of
from services.console.auth.users import Clock, utc_now
from services.console.database import Database
from services.console.tables import DeviceRow

LIFETIME: Final = timedelta(days=90)
"""How long a device is known after its last sign-in."""

_MAX_DEVICES: Final = 20
_BROWSER: Final = "browser "
_ADDRESS: Final = "address "


class Devices:
    """The known devices in the console's database."""

    def __init__(self, database: Database, now: Clock = utc_now) -> None:
        self._database = database
        self._now = now

    async def find(self, user: str, token: str | None) -> str | None:
        """Return the ID of a user's known browser; None for any other browser."""
        if not token:
            return None
        browser = _browser(token)
        async with self._database.snapshot() as connection:
            return browser if await self._is_known(connection, user, browser) else None

    async def knows_address(self, connection: AsyncConnection, user: str, address: str) -> bool:
        """Return whether a user has signed in from an address."""
        return await self._is_known(connection, user, _ADDRESS + network_of(address))

    async def remember(self, user: str, address: str, token: str | None, *, browser: bool) -> str | None:
        """Store a device and an address after a sign-in, and return a token for a new browser.

        The oldest of more than 20 devices of a kind are deleted.
        """
        known = await self.find(user, token)
        new = secrets.token_urlsafe(32) if browser and known is None else None
        async with self._database.transaction() as connection:
            if known is not None:
                await self._touch(connection, user, known)
            elif new is not None:
                await self._touch(connection, user, _browser(new))
            await self._touch(connection, user, _ADDRESS + network_of(address))
            for kind in (_BROWSER, _ADDRESS):
                own = (DeviceRow.user_name == user) & DeviceRow.id.startswith(kind)
                newest = (
                    select(DeviceRow.id).where(own).order_by(DeviceRow.seen_at.desc(), DeviceRow.id).limit(_MAX_DEVICES)
                )
                await connection.execute(delete(DeviceRow).where(own, DeviceRow.id.not_in(newest.scalar_subquery())))
            await connection.execute(delete(DeviceRow).where(DeviceRow.seen_at <= self._now() - LIFETIME))
        return new

    async def _touch(self, connection: AsyncConnection, user: str, device: str) -> None:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        row = insert(DeviceRow).values(user_name=user, id=device, seen_at=self._now())
        await connection.execute(
            row.on_conflict_do_update(index_elements=["user_name", "id"], set_={"seen_at": self._now()})
        )

    async def _is_known(self, connection: AsyncConnection, user: str, device: str) -> bool:
        query = select(DeviceRow.seen_at).where(DeviceRow.user_name == user, DeviceRow.id == device)
        seen_at = await connection.scalar(query)
        return seen_at is not None and seen_at > self._now() - LIFETIME


def _browser(token: str) -> str:
    return _BROWSER + hashlib.sha256(token.encode()).hexdigest()

"""Known browsers and addresses of people, as in OWASP's device cookies.

A browser gets a token with its first sign-in. The token replaces no password. It gives the browser a count of failures
of its own, so strangers who guess the person's password, even from the same address, don't use up the browser's tries.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from importlib import import_module
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.console.people.attempts import place
from services.console.people.database import Database
from services.console.people.persons import Clock, utc_now
from services.console.people.tables import DeviceRow

LIFETIME: Final = timedelta(days=90)
"""How long a device is known after its last sign-in."""

_MOST: Final = 20
_BROWSER: Final = "browser "
_ADDRESS: Final = "address "


class Devices:
    """The known devices in the console's database.

    Args:
        database: The database.
        now: The clock.
    """

    def __init__(self, database: Database, now: Clock = utc_now) -> None:
        self._database = database
        self._now = now

    async def find(self, person: str, token: str | None) -> str | None:
        """Return the id of a browser that a person signed in with; None when it isn't known.

        Args:
            person: The canonical name.
            token: The browser's token; None when it has none.
        """
        if not token:
            return None
        found = _browser(token)
        async with self._database.reading() as connection:
            return found if await self._is_known(connection, person, found) else None

    async def knows_address(self, connection: AsyncConnection, person: str, address: str) -> bool:
        """Tell if a person signed in from an address before.

        Args:
            connection: An open transaction.
            person: The canonical name.
            address: The address.
        """
        return await self._is_known(connection, person, _ADDRESS + place(address))

    async def remember(self, person: str, address: str, token: str | None, *, browser: bool) -> str | None:
        """Know a device and an address from now on; the oldest beyond twenty of each are forgotten.

        Args:
            person: The canonical name of who signed in.
            address: From where.
            token: The browser's token so far.
            browser: Whether it is a browser, which keeps a token.

        Returns:
            A token for a browser that isn't known yet.
        """
        known = await self.find(person, token)
        new = secrets.token_urlsafe(32) if browser and known is None else None
        async with self._database.transaction() as connection:
            if known is not None:
                await self._see(connection, person, known)
            elif new is not None:
                await self._see(connection, person, _browser(new))
            await self._see(connection, person, _ADDRESS + place(address))
            for kind in (_BROWSER, _ADDRESS):
                mine = (DeviceRow.person == person) & DeviceRow.id.startswith(kind)
                newest = select(DeviceRow.id).where(mine).order_by(DeviceRow.seen_at.desc(), DeviceRow.id).limit(_MOST)
                await connection.execute(delete(DeviceRow).where(mine, DeviceRow.id.not_in(newest.scalar_subquery())))
            await connection.execute(delete(DeviceRow).where(DeviceRow.seen_at <= self._now() - LIFETIME))
        return new

    async def _see(self, connection: AsyncConnection, person: str, device: str) -> None:
        # A process imports the dialect of its database only.
        insert = import_module(f"sqlalchemy.dialects.{connection.dialect.name}").insert
        seen = insert(DeviceRow).values(person=person, id=device, seen_at=self._now())
        await connection.execute(
            seen.on_conflict_do_update(index_elements=["person", "id"], set_={"seen_at": self._now()})
        )

    async def _is_known(self, connection: AsyncConnection, person: str, device: str) -> bool:
        this = select(DeviceRow.seen_at).where(DeviceRow.person == person, DeviceRow.id == device)
        seen_at = await connection.scalar(this)
        return seen_at is not None and seen_at > self._now() - LIFETIME


def _browser(token: str) -> str:
    return _BROWSER + hashlib.sha256(token.encode()).hexdigest()

"""Signing in: at most so many failures, and no telling whether a name is known.

Three counts of failures bound guessing: of a name from one address, of an address over all names, and of a name over
all addresses. The third slows strangers down and locks nobody out; as a limit, it would let anybody lock a person out.
A browser that signed in before has a count of its own, so a flood from its address or on its person's name does not
affect it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.security.user_names import canonical_user
from services.console.people.attempts import of_address, of_device, of_name, of_name_from, of_session, place
from services.console.people.database import Database
from services.console.people.devices import Devices
from services.console.people.passwords import Source, check_strength
from services.console.people.persons import Clock, Users, utc_now
from services.console.people.sessions import SignedIn
from services.console.people.tables import AttemptRow
from services.console.problems import ConsoleError

_EVERYWHERE: Final = 20


@dataclass(frozen=True)
class Limits:
    """How many failures are taken, and how many tries.

    Args:
        rate: How many tries an address may make, failed or not. It is counted in this process, before the database is
            asked.
        per_name: Failures of one name from one address, or from one known browser, within the window.
        per_address: Failures from one address, within the window.
        window: The window.
        pause: After twenty times `per_name` failures of a name from everywhere, strangers may try it once in this time.
    """

    rate: RateLimitItem
    per_name: int = 5
    per_address: int = 30
    window: timedelta = timedelta(minutes=15)
    pause: timedelta = timedelta(seconds=30)


@dataclass(frozen=True)
class _Try:
    """One try of a password.

    Args:
        counted: The keys of its counts.
        source: The source that waits for a hashing slot.
    """

    counted: tuple[str, ...]
    source: Source


class SignIn:
    """Checks who wants to sign in.

    Args:
        database: The database, which counts the attempts: a restart forgets none.
        persons: Who there is.
        devices: The devices that are known.
        limits: How many failures are taken.
        now: The clock.
    """

    def __init__(
        self, database: Database, persons: Users, devices: Devices, limits: Limits, now: Clock = utc_now
    ) -> None:
        self._database = database
        self._persons = persons
        self._devices = devices
        self._limits = limits
        self._rates = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._now = now

    async def check(self, name: str, password: str, *, address: str, device: str | None = None) -> str:
        """Return the canonical name of who signs in.

        Args:
            name: The name, as typed.
            password: The password.
            address: From where.
            device: The browser's token, if it has one.

        Raises:
            ConsoleError: Incorrect name or password (401), too many failures or tries (429), or too many people are
                signing in (503).
        """
        person = canonical_user(name)[:200]
        known = await self._devices.find(person, device)
        if known is not None:
            async with self._database.reading() as connection:
                spent = await self._wait(connection, of_device(known), self._limits.per_name)
            known = None if spent else known
        if known is None:
            await self._check_rate(place(address))
        # Counted before the password is checked, so that many at once are not each the first one.
        this = await self._count(person, address, known)
        if not await self._fits(person, password, this):
            raise ConsoleError(401, "wrong_credentials", "name and password do not belong together")
        async with self._database.transaction() as connection:
            # This one was no failure. What others did stays counted: of this name elsewhere, of other names from there.
            own, *shared = this.counted
            await connection.execute(delete(AttemptRow).where(AttemptRow.whose == own))
            await _take_back(connection, shared)
        return person

    async def change_password(self, signed_in: SignedIn, old: str, new: str) -> None:
        """Let a person change their own password; see `Users.set_password`.

        Failures are counted for the session. A thief of the session is stopped, and the person can still sign in.

        Args:
            signed_in: Who.
            old: The password so far.
            new: The new one.

        Raises:
            ConsoleError: The old one is wrong (400), it was too often (429), or the new one is too weak (400).
        """
        check_strength(new)
        counted = of_session(signed_in.session_id)
        async with self._database.transaction() as connection:
            await self._forget_old(connection)
            self._refuse(await self._wait(connection, counted, self._limits.per_name), "too many wrong passwords")
            await connection.execute(insert(AttemptRow).values(whose=counted, at=self._now()))
        this = _Try((counted,), Source(f"session {signed_in.session_id}", known=True))
        if not await self._fits(signed_in.person.name, old, this):
            raise ConsoleError(400, "wrong_password", "the old password is wrong")
        await self._persons.set_password(signed_in.person.name, new, by=signed_in.person.name)

    async def _check_rate(self, where: str) -> None:
        rate = self._limits.rate
        if not await self._rates.hit(rate, where):
            stats = await self._rates.get_window_stats(rate, where)
            wait = max(1, math.ceil(stats.reset_time - time.time()))
            told = f"too many sign-ins from your address; wait {_spoken(wait)}"
            raise ConsoleError(429, "too_many_attempts", told, retry_after=wait)

    async def _fits(self, person: str, password: str, this: _Try) -> bool:
        try:
            return await self._persons.password_fits(person, password, this.source)
        except ConsoleError:  # its turn never came: nothing was tried
            async with self._database.transaction() as connection:
                await _take_back(connection, this.counted)
            raise

    async def _count(self, person: str, address: str, known: str | None) -> _Try:
        limits = self._limits
        async with self._database.transaction() as connection:
            await self._forget_old(connection)
            device = None if known is None else of_device(known)
            if device is not None and await self._wait(connection, device, limits.per_name) == 0:
                this = _Try((device,), Source(device, known=True))
            else:
                await self._check_stranger(connection, person, address)
                counted = (of_name_from(person, address), of_name(person), of_address(address))
                this = _Try(counted, Source(of_address(address)))
            now = self._now()
            await connection.execute(insert(AttemptRow), [{"whose": whose, "at": now} for whose in this.counted])
        return this

    async def _check_stranger(self, connection: AsyncConnection, person: str, address: str) -> None:
        limits = self._limits
        by_address = await self._wait(connection, of_address(address), limits.per_address)
        by_name = await self._wait(connection, of_name_from(person, address), limits.per_name)
        if by_address >= by_name:
            self._refuse(by_address, "too many failed sign-ins from your address")
        self._refuse(by_name, "too many failed sign-ins", "or ask an administrator")
        if not await self._devices.knows_address(connection, person, address):
            pause = await self._pause(connection, person)
            self._refuse(pause, "too many failed sign-ins", "or use a browser in which you signed in before")

    async def _pause(self, connection: AsyncConnection, person: str) -> int:
        """Return for how many seconds strangers may not try a name that many have failed with; 0 when they may."""
        count, _, newest = await _tries(connection, of_name(person))
        if newest is None or count < self._limits.per_name * _EVERYWHERE:
            return 0
        return self._seconds_until(newest + self._limits.pause)

    async def _forget_old(self, connection: AsyncConnection) -> None:
        await connection.execute(delete(AttemptRow).where(AttemptRow.at <= self._now() - self._limits.window))

    async def _wait(self, connection: AsyncConnection, whose: str, limit: int) -> int:
        """Return for how many seconds no more tries are taken; 0 when one is."""
        count, oldest, _ = await _tries(connection, whose)
        if oldest is None or count < limit:
            return 0
        return max(1, self._seconds_until(oldest + self._limits.window))

    def _seconds_until(self, moment: datetime) -> int:
        return max(0, math.ceil((moment - self._now()).total_seconds()))

    @staticmethod
    def _refuse(wait: int, why: str, otherwise: str = "") -> None:
        if wait:
            told = ", ".join(part for part in (f"{why}; wait {_spoken(wait)}", otherwise) if part)
            raise ConsoleError(429, "too_many_attempts", told, retry_after=wait)


async def _tries(connection: AsyncConnection, whose: str) -> tuple[int, datetime | None, datetime | None]:
    found = select(func.count(), func.min(AttemptRow.at), func.max(AttemptRow.at)).where(AttemptRow.whose == whose)
    count, oldest, newest = (await connection.execute(found)).one()
    return count, oldest, newest


async def _take_back(connection: AsyncConnection, counted: tuple[str, ...] | list[str]) -> None:
    for whose in counted:
        this = select(func.max(AttemptRow.number)).where(AttemptRow.whose == whose).scalar_subquery()
        await connection.execute(delete(AttemptRow).where(AttemptRow.number == this))


def _spoken(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} seconds" if seconds > 1 else "a second"
    minutes = -(-seconds // 60)
    return f"{minutes} minutes" if minutes > 1 else "a minute"

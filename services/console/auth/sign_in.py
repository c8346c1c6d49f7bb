"""Sign-in with limits on failures, which does not reveal whether a user name exists.

Three counts of failures bound guessing: of a name at one address, of an address over all names, and of a name over all
addresses. The third count only slows unknown clients down: as a hard limit, it would let anyone lock a user out. A
browser that has signed in before has its own count, so attacks from its address or on its user's name do not affect it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.security.user_names import canonical_user
from services.console.auth.devices import Devices
from services.console.auth.failed_sign_ins import (
    address_key,
    device_key,
    name_and_address_key,
    name_key,
    network_of,
    session_key,
)
from services.console.auth.passwords import Source, check_password
from services.console.auth.sessions import Session
from services.console.auth.users import Clock, Users, utc_now
from services.console.database import Database
from services.console.problems import ConsoleError
from services.console.tables import FailedSignInRow

_GLOBAL_FACTOR: Final = 20


@dataclass(frozen=True)
class SignInLimits:
    """Limits on sign-ins.

    Args:
        rate: Attempts per address, failed or not. Counted in this process, before the database is queried.
        per_name: Failures of one name at one address, or in one known browser, within the window.
        per_address: Failures at one address within the window.
        window: The window.
        pause: After 20 times `per_name` failures of a name from all addresses, unknown clients get one attempt a pause.
    """

    rate: RateLimitItem
    per_name: int = 5
    per_address: int = 30
    window: timedelta = timedelta(minutes=15)
    pause: timedelta = timedelta(seconds=30)


@dataclass(frozen=True)
class _Attempt:
    """An attempt: the keys that count it, its own key first, and its source for hashing."""

    keys: tuple[str, ...]
    source: Source


class SignIn:
    """Verifies user names and passwords. Failures are counted in the database, so a restart keeps the counts."""

    def __init__(
        self, database: Database, users: Users, devices: Devices, limits: SignInLimits, now: Clock = utc_now
    ) -> None:
        self._database = database
        self._users = users
        self._devices = devices
        self._limits = limits
        self._rates = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._now = now

    async def verify(self, name: str, password: str, *, address: str, device: str | None = None) -> str:
        """Verify a user name and password, and return the canonical name.

        Args:
            name: The user name as typed.
            password: The password.
            address: The client's address.
            device: The browser's device token.

        Raises:
            ConsoleError: Incorrect username or password (401), too many failures or attempts (429), or too many
                waiting sign-ins (503).
        """
        user = canonical_user(name)[:200]
        known = await self._devices.find(user, device)
        if known is not None:
            async with self._database.snapshot() as connection:
                is_blocked = await self._blocked_for(connection, device_key(known), self._limits.per_name)
            known = None if is_blocked else known
        if known is None:
            await self._check_rate(network_of(address))
        # Counted before the password is verified, so that concurrent attempts do not evade the limit.
        attempt = await self._count(user, address, known)
        if not await self._verify(user, password, attempt):
            raise ConsoleError(401, "wrong_credentials", "incorrect username or password")
        async with self._database.transaction() as connection:
            # Success clears the attempt's own key. Of the shared keys, it removes only this attempt.
            own, *shared = attempt.keys
            await connection.execute(delete(FailedSignInRow).where(FailedSignInRow.key == own))
            await _uncount(connection, shared)
        return user

    async def change_password(self, session: Session, old: str, new: str) -> None:
        """Change the password of a session's user; see `Users.set_password`.

        Failures count for the session: a stolen session is blocked, and its user can still sign in.

        Raises:
            ConsoleError: The old password is wrong or the new one invalid (400), or too many failures (429).
        """
        check_password(new)
        key = session_key(session.id)
        async with self._database.transaction() as connection:
            await self._purge(connection)
            _reject(await self._blocked_for(connection, key, self._limits.per_name), "too many wrong passwords")
            await connection.execute(insert(FailedSignInRow).values(key=key, at=self._now()))
        attempt = _Attempt((key,), Source(f"session {session.id}", known=True))
        if not await self._verify(session.user.name, old, attempt):
            raise ConsoleError(400, "wrong_password", "the old password is wrong")
        await self._users.set_password(session.user.name, new, by=session.user.name)

    async def _check_rate(self, network: str) -> None:
        rate = self._limits.rate
        if not await self._rates.hit(rate, network):
            stats = await self._rates.get_window_stats(rate, network)
            _reject(max(1, math.ceil(stats.reset_time - time.time())), "too many sign-ins from your address")

    async def _verify(self, user: str, password: str, attempt: _Attempt) -> bool:
        try:
            return await self._users.verify_password(user, password, attempt.source)
        except ConsoleError:  # rejected while waiting for a slot, so the password was not tried
            async with self._database.transaction() as connection:
                await _uncount(connection, attempt.keys)
            raise

    async def _count(self, user: str, address: str, known: str | None) -> _Attempt:
        limits = self._limits
        async with self._database.transaction() as connection:
            await self._purge(connection)
            device = None if known is None else device_key(known)
            if device is not None and await self._blocked_for(connection, device, limits.per_name) == 0:
                attempt = _Attempt((device,), Source(device, known=True))
            else:
                await self._check_unknown(connection, user, address)
                keys = (name_and_address_key(user, address), name_key(user), address_key(address))
                attempt = _Attempt(keys, Source(address_key(address)))
            now = self._now()
            await connection.execute(insert(FailedSignInRow), [{"key": key, "at": now} for key in attempt.keys])
        return attempt

    async def _check_unknown(self, connection: AsyncConnection, user: str, address: str) -> None:
        limits = self._limits
        by_address = await self._blocked_for(connection, address_key(address), limits.per_address)
        by_name = await self._blocked_for(connection, name_and_address_key(user, address), limits.per_name)
        if by_address >= by_name:
            _reject(by_address, "too many failed sign-ins from your address")
        _reject(by_name, "too many failed sign-ins", "or ask an administrator")
        if not await self._devices.knows_address(connection, user, address):
            pause = await self._pause(connection, user)
            _reject(pause, "too many failed sign-ins", "or use a browser in which you signed in before")

    async def _pause(self, connection: AsyncConnection, user: str) -> int:
        """Return the seconds until an unknown client may try a name with many failures; 0 for now."""
        count, _, newest = await _failures(connection, name_key(user))
        if newest is None or count < self._limits.per_name * _GLOBAL_FACTOR:
            return 0
        return self._seconds_until(newest + self._limits.pause)

    async def _purge(self, connection: AsyncConnection) -> None:
        await connection.execute(delete(FailedSignInRow).where(FailedSignInRow.at <= self._now() - self._limits.window))

    async def _blocked_for(self, connection: AsyncConnection, key: str, limit: int) -> int:
        """Return the seconds until a key may be tried again; 0 for now."""
        count, oldest, _ = await _failures(connection, key)
        if oldest is None or count < limit:
            return 0
        return max(1, self._seconds_until(oldest + self._limits.window))

    def _seconds_until(self, at: datetime) -> int:
        return max(0, math.ceil((at - self._now()).total_seconds()))


def _reject(seconds: int, reason: str, alternative: str = "") -> None:
    if seconds:
        message = ", ".join(part for part in (f"{reason}; wait {_format(seconds)}", alternative) if part)
        raise ConsoleError(429, "too_many_attempts", message, retry_after=seconds)


async def _failures(connection: AsyncConnection, key: str) -> tuple[int, datetime | None, datetime | None]:
    query = select(func.count(), func.min(FailedSignInRow.at), func.max(FailedSignInRow.at))
    count, oldest, newest = (await connection.execute(query.where(FailedSignInRow.key == key))).one()
    return count, oldest, newest


async def _uncount(connection: AsyncConnection, keys: Iterable[str]) -> None:
    for key in keys:
        newest = select(func.max(FailedSignInRow.number)).where(FailedSignInRow.key == key).scalar_subquery()
        await connection.execute(delete(FailedSignInRow).where(FailedSignInRow.number == newest))


def _format(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} seconds" if seconds > 1 else "a second"
    minutes = -(-seconds // 60)
    return f"{minutes} minutes" if minutes > 1 else "a minute"

"""Signing in: at most so many failures, and no telling whether a name is known.

Failures are counted three times: of a name from one address, which is low, so that guessing is slow; from an address
over all names; and of a name over all addresses, which is high. Were that one low, too, whoever can reach the console
could keep anybody out of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.people import canonical_person
from services.console.people.attempts import of_address, of_name, of_name_from
from services.console.people.database import Database
from services.console.people.persons import Clock, Persons, utc_now
from services.console.people.tables import AttemptRow
from services.console.problems import ConsoleError

_EVERYWHERE: Final = 20


@dataclass(frozen=True)
class Limits:
    """How many failures are taken.

    Args:
        per_name: Of one name from one address, within the window; of one name from everywhere, twenty times as many.
        per_address: From one address, within the window.
        window: The window.
    """

    per_name: int = 5
    per_address: int = 30
    window: timedelta = timedelta(minutes=15)


class SignIn:
    """Checks who wants to sign in.

    Args:
        database: The database, which counts the attempts: a restart forgets none.
        persons: Who there is.
        limits: How many failures are taken.
        now: The clock.
    """

    def __init__(self, database: Database, persons: Persons, limits: Limits, now: Clock = utc_now) -> None:
        self._database = database
        self._persons = persons
        self._limits = limits
        self._now = now

    async def check(self, name: str, password: str, *, address: str) -> str:
        """Return the canonical name of who signs in.

        Args:
            name: The name, as typed.
            password: The password.
            address: From where.

        Raises:
            ConsoleError: Name and password don't belong together (401), or there were too many failures (429).
        """
        person = canonical_person(name)[:200]
        # Counted before the password is checked, so that many at once are not each the first one.
        await self._count(person, address)
        if not await self._persons.password_fits(person, password):
            raise ConsoleError(401, "wrong_credentials", "name and password do not belong together")
        async with self._database.transaction() as connection:
            await connection.execute(delete(AttemptRow).where(AttemptRow.whose == of_name_from(person, address)))
            # This one was no failure. What others did stays counted: of this name elsewhere, of other names from there.
            for whose in (of_name(person), of_address(address)):
                this = select(func.max(AttemptRow.number)).where(AttemptRow.whose == whose).scalar_subquery()
                await connection.execute(delete(AttemptRow).where(AttemptRow.number == this))
        return person

    async def _count(self, person: str, address: str) -> None:
        now, limits = self._now(), self._limits
        of_person = {
            of_name_from(person, address): limits.per_name,
            of_name(person): limits.per_name * _EVERYWHERE,
        }
        async with self._database.transaction() as connection:
            await connection.execute(delete(AttemptRow).where(AttemptRow.at <= now - limits.window))
            by_address = await self._wait(connection, of_address(address), limits.per_address)
            waits = [by_address, *[await self._wait(connection, *each) for each in of_person.items()]]
            if wait := max(waits):
                # Another password is a way out of the limits of a name, and of no address's.
                told = f"too many failed sign-ins; wait {_spoken(wait)}, or ask an administrator"
                if by_address:
                    told = f"too many failed sign-ins from your address; wait {_spoken(wait)}"
                raise ConsoleError(429, "too_many_attempts", told, retry_after=wait)
            counted = [*of_person, of_address(address)]
            await connection.execute(insert(AttemptRow), [{"whose": whose, "at": now} for whose in counted])

    async def _wait(self, connection: AsyncConnection, whose: str, limit: int) -> int:
        """Return for how many seconds no more tries are taken; 0 when one is."""
        mine = select(func.count(), func.min(AttemptRow.at)).where(AttemptRow.whose == whose)
        count, oldest = (await connection.execute(mine)).one()
        if count < limit:
            return 0
        return max(1, math.ceil((oldest + self._limits.window - self._now()).total_seconds()))


def _spoken(seconds: int) -> str:
    minutes = -(-seconds // 60)
    return f"{minutes} minutes" if minutes > 1 else "a minute"

"""Signing in: at most so many failures a name and an address, and no telling whether a name is known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, insert, select

from perdure.people import canonical_person
from services.console.people.database import Database
from services.console.people.persons import Clock, Persons, utc_now
from services.console.people.tables import AttemptRow
from services.console.problems import ConsoleError


@dataclass(frozen=True)
class Limits:
    """How many failures are taken.

    Args:
        per_name: Of one name, within the window.
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
        await self._count(f"name {person}", self._limits.per_name, f"address {address}", self._limits.per_address)
        if not await self._persons.password_fits(person, password):
            raise ConsoleError(401, "wrong_credentials", "name and password do not belong together")
        async with self._database.transaction() as connection:
            await connection.execute(delete(AttemptRow).where(AttemptRow.whose == f"name {person}"))
            # This one was no failure; the others from there, of other names, stay counted.
            this = select(func.max(AttemptRow.number)).where(AttemptRow.whose == f"address {address}").scalar_subquery()
            await connection.execute(delete(AttemptRow).where(AttemptRow.number == this))
        return person

    async def _count(self, name: str, per_name: int, address: str, per_address: int) -> None:
        now = self._now()
        since = now - self._limits.window
        async with self._database.transaction() as connection:
            await connection.execute(delete(AttemptRow).where(AttemptRow.at <= since))
            for whose, limit in ((name, per_name), (address, per_address)):
                mine = select(func.count(), func.min(AttemptRow.at)).where(AttemptRow.whose == whose)
                count, oldest = (await connection.execute(mine)).one()
                if count >= limit:
                    wait = max(1, round((oldest - since).total_seconds()))
                    raise ConsoleError(
                        429,
                        "too_many_attempts",
                        f"too many failed sign-ins; wait {_spoken(wait)}, or ask an administrator",
                        retry_after=wait,
                    )
            await connection.execute(insert(AttemptRow), [{"whose": name, "at": now}, {"whose": address, "at": now}])


def _spoken(seconds: int) -> str:
    minutes = -(-seconds // 60)
    return f"{minutes} minutes" if minutes > 1 else "a minute"

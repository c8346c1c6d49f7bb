"""Persons: who may sign in, with which roles and groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.security.user_names import ANYONE, PROGRAM_PREFIX, canonical_user, check_name
from services.console.people.attempts import forget
from services.console.people.database import Database
from services.console.people.passwords import Passwords, Source
from services.console.people.roles import Role
from services.console.people.tables import ActionRow, DeviceRow, RightsRow, SessionRow, UserRow
from services.console.problems import ConsoleError, invalid, not_found

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class Person(BaseModel):
    """Somebody who may sign in.

    Args:
        name: In its canonical form, as approvals compare it.
        roles: What they may do.
        groups: The groups whose approvals they may decide.
        disabled: Whether they may not sign in at present.
        created_at: Since when they are known.
    """

    name: str
    roles: frozenset[Role]
    groups: list[str]
    disabled: bool
    created_at: datetime


class UserAction(BaseModel):
    """One entry of the log: what was done to a person or, for want of an audit log of its own, to an invocation."""

    at: datetime
    actor: str
    act: str
    person: str
    details: str


class StatedRights(BaseModel):
    """What the engine is told of a person's rights.

    Args:
        person: The person.
        roles: The person's roles.
        active: False for a person who is disabled.
        revoked_before: Links, delegations and credentials from up to this moment no longer hold.
        changed_at: The moment of the latest change.
        changed_by: The person who made it.
    """

    person: str
    roles: list[Role]
    active: bool
    revoked_before: datetime | None
    changed_at: datetime
    changed_by: str


class Users:
    """The persons in the console's database.

    Args:
        database: The database.
        passwords: Hashes and checks passwords.
        now: The clock.
    """

    def __init__(self, database: Database, passwords: Passwords, now: Clock = utc_now) -> None:
        self._database = database
        self._passwords = passwords
        self._now = now
        self._changed = asyncio.Event()

    async def all(self) -> list[Person]:
        """Return all persons, by name."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(UserRow.__table__).order_by(UserRow.name))
            return [_person(row) for row in rows]

    async def get(self, name: str) -> Person:
        """Return a person.

        Args:
            name: Their name.

        Raises:
            ConsoleError: Nobody has it.
        """
        async with self._database.reading() as connection:
            rows = await connection.execute(select(UserRow.__table__).where(UserRow.name == canonical_user(name)))
            row = rows.first()
        if row is None:
            raise not_found(f"there is no person '{name[:200]}'")
        return _person(row)

    async def add(
        self, name: str, password: str, roles: Iterable[Role], groups: Iterable[str] = (), *, by: str
    ) -> Person:
        """Add a person.

        Args:
            name: Their name, for example an e-mail address.
            password: Their password.
            roles: What they may do; at least one.
            groups: Their groups, without ``group:``.
            by: Who adds them.

        Raises:
            ConsoleError: The name is taken or empty, the password too weak, or there is no role.
        """
        person = Person(
            name=_checked_name(name),
            roles=_checked_roles(roles),
            groups=_checked_groups(groups),
            disabled=False,
            created_at=self._now(),
        )
        hashed = await self._passwords.hash(password, Source(f"person {by}", known=True))
        try:
            async with self._database.transaction() as connection:
                await connection.execute(insert(UserRow).values(**_row(person), password_hash=hashed))
                await self._log(connection, by, "add", person.name, _shown(person))
                await self._state(connection, person.name, by=by)
        except IntegrityError as error:
            raise ConsoleError(409, "name_taken", f"there is a person '{person.name}' already") from error
        self._changed.set()
        return person

    async def change(
        self,
        name: str,
        *,
        roles: Iterable[Role] | None = None,
        groups: Iterable[str] | None = None,
        disabled: bool | None = None,
        by: str,
    ) -> Person:
        """Change what a person may do. It ends their sessions, links and delegations: nothing goes on under old rights.

        Args:
            name: The person.
            roles: Their roles from now on; None keeps them.
            groups: Their groups from now on; None keeps them.
            disabled: Whether they may sign in; None keeps it.
            by: Who changes it.

        Raises:
            ConsoleError: Nobody has the name; or nobody would be left who may change persons.
        """
        async with self._database.transaction() as connection:
            rows = list(await connection.execute(select(UserRow.__table__)))
            everybody = {row.name: _person(row) for row in rows}
            before = everybody.get(canonical_user(name))
            if before is None:
                raise not_found(f"there is no person '{name[:200]}'")
            after = before.model_copy(
                update={
                    "roles": before.roles if roles is None else _checked_roles(roles),
                    "groups": before.groups if groups is None else _checked_groups(groups),
                    "disabled": before.disabled if disabled is None else disabled,
                }
            )
            everybody[after.name] = after
            if not any(Role.ADMINISTRATOR in each.roles and not each.disabled for each in everybody.values()):
                raise ConsoleError(
                    409, "last_administrator", "nobody would be left who may change persons: name another one first"
                )
            await connection.execute(update(UserRow).where(UserRow.name == after.name).values(**_row(after)))
            await connection.execute(delete(SessionRow).where(SessionRow.person == after.name))
            await self._log(connection, by, "change", after.name, _shown(after))
            await self._state(connection, after.name, by=by, revokes=True)
        self._changed.set()
        return after

    async def revoke_links(self, name: str, *, by: str) -> None:
        """End the links, delegations and key files that a person has now. The person's roles and sessions stay.

        Args:
            name: The person.
            by: Who does it.

        Raises:
            ConsoleError: Nobody has the name.
        """
        person = await self.get(name)
        async with self._database.transaction() as connection:
            await self._log(connection, by, "revoke links", person.name, "")
            await self._state(connection, person.name, by=by, revokes=True)
        self._changed.set()

    async def unsent_rights(self) -> list[StatedRights]:
        """Return the rights that the engine does not have as they are now, in the order of the changes."""
        is_unsent = RightsRow.sent.is_(None) | (RightsRow.sent < RightsRow.changed_at)
        query = (
            select(RightsRow.__table__, UserRow.roles, UserRow.disabled)
            .join(UserRow, UserRow.name == RightsRow.person)
            .where(is_unsent)
            .order_by(RightsRow.changed_at)
        )
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [StatedRights.model_validate({**row._asdict(), "active": not row.disabled}) for row in rows]

    async def rights_sent(self, stated: StatedRights) -> None:
        """Record that the engine has what was stated.

        Args:
            stated: What was sent. A change since then is still to be sent.
        """
        async with self._database.transaction() as connection:
            sent = update(RightsRow).where(RightsRow.person == stated.person, RightsRow.changed_at == stated.changed_at)
            await connection.execute(sent.values(sent=stated.changed_at))

    async def rights_changed(self, within: timedelta) -> None:
        """Wait for the next change of a person by this process.

        Args:
            within: How long at most.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), within.total_seconds())
        self._changed.clear()

    async def set_password(self, name: str, password: str, *, by: str) -> None:
        """Give a person another password.

        It ends their sessions, and the wait after too many failed sign-ins, and no device of theirs is known any more.

        Args:
            name: The person.
            password: The new password.
            by: Who does it.

        Raises:
            ConsoleError: Nobody has the name, or the new password is too weak.
        """
        person = await self.get(name)
        hashed = await self._passwords.hash(password, Source(f"person {by}", known=True))
        async with self._database.transaction() as connection:
            await connection.execute(update(UserRow).where(UserRow.name == person.name).values(password_hash=hashed))
            await connection.execute(delete(SessionRow).where(SessionRow.person == person.name))
            await connection.execute(delete(DeviceRow).where(DeviceRow.person == person.name))
            await forget(connection, person.name)
            await self._log(connection, by, "password", person.name, "")

    async def password_fits(self, name: str, password: str, source: Source) -> bool:
        """Tell if a password is a person's, in the same time for a name that nobody has.

        Args:
            name: The name.
            password: The password.
            source: Who asks.

        Raises:
            ConsoleError: Too many are waiting.
        """
        async with self._database.reading() as connection:
            found = select(UserRow.password_hash, UserRow.disabled).where(UserRow.name == canonical_user(name))
            row = (await connection.execute(found)).first()
        fits = await self._passwords.fits(None if row is None else row.password_hash, password, source)
        return fits and row is not None and not row.disabled

    async def acts(self, limit: int = 50) -> list[UserAction]:
        """Return what was done to persons, the newest first.

        Args:
            limit: How many at most.
        """
        async with self._database.reading() as connection:
            rows = await connection.execute(select(ActionRow.__table__).order_by(ActionRow.number.desc()).limit(limit))
            return [UserAction.model_validate(row._asdict()) for row in rows]

    async def record(self, actor: str, act: str, what: str, details: str = "") -> None:
        """Keep an act of which the engine does not know who did it.

        Args:
            actor: Who acted.
            act: What they did.
            what: What to.
            details: More about it.
        """
        async with self._database.transaction() as connection:
            await self._log(connection, actor, act, what, details)

    async def _state(self, connection: AsyncConnection, person: str, *, by: str, revokes: bool = False) -> None:
        """Have the engine told of a change, in the transaction of the change."""
        found = await connection.execute(select(RightsRow.__table__).where(RightsRow.person == person))
        before = found.first()
        at = self._now()
        if before is not None:  # later than the one before, whatever the clock says
            at = max(at, before.changed_at + timedelta(microseconds=1))
        values: dict[str, Any] = {"changed_at": at, "changed_by": by} | ({"revoked_before": at} if revokes else {})
        if before is None:
            await connection.execute(insert(RightsRow).values(person=person, **values))
        else:
            await connection.execute(update(RightsRow).where(RightsRow.person == person).values(**values))

    async def _log(self, connection: AsyncConnection, actor: str, act: str, person: str, details: str) -> None:
        entry = {"at": self._now(), "actor": actor, "act": act, "person": person, "details": details}
        await connection.execute(insert(ActionRow).values(**entry))


def _person(row: object) -> Person:
    return Person.model_validate(row, from_attributes=True)


def _row(person: Person) -> dict[str, object]:
    return {
        "name": person.name,
        "roles": sorted(person.roles),
        "groups": person.groups,
        "disabled": person.disabled,
        "created_at": person.created_at,
    }


def _shown(person: Person) -> str:
    groups = f"; groups {', '.join(person.groups)}" if person.groups else ""
    return f"roles {', '.join(sorted(person.roles))}{groups}{'; disabled' if person.disabled else ''}"


def _checked_name(name: str) -> str:
    try:
        person = check_name(name)
    except ValueError as error:
        raise invalid(f"name: {error}") from error
    if not person or len(person) > 200 or person == ANYONE or person.startswith(("group:", PROGRAM_PREFIX)):
        raise invalid("a person's name has 1 to 200 characters, and is neither 'anyone' nor a group's or program's")
    return person


def _checked_roles(roles: Iterable[Role]) -> frozenset[Role]:
    held = frozenset(roles)
    if not held:
        raise invalid(f"a person needs at least one role: {', '.join(Role)}")
    return held


def _checked_groups(groups: Iterable[str]) -> list[str]:
    try:
        names = sorted({check_name(each).removeprefix("group:") for each in groups} - {""})
    except ValueError as error:
        raise invalid(f"groups: {error}") from error
    if len(names) > 50 or any(len(each) > 100 for each in names):
        raise invalid("at most 50 groups, each of at most 100 characters")
    return names

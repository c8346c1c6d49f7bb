"""Users: names, roles and groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.security.user_names import GROUP_PREFIX, canonical_user, check_group, check_name, check_user
from services.console.auth import failed_sign_ins
from services.console.auth.passwords import Passwords, Source
from services.console.auth.roles import Role
from services.console.database import Database
from services.console.problems import ConsoleError, invalid, not_found
from services.console.tables import ActionRow, DeviceRow, RightsRow, SessionRow, UserRow

Clock = Callable[[], datetime]

ACTION_RETENTION: Final = timedelta(days=365)
"""Default retention of the log of actions."""


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class User(BaseModel):
    """A user. The name is in canonical form, as approvals compare it."""

    name: str
    roles: frozenset[Role]
    groups: list[str]
    disabled: bool
    created_at: datetime


class UserAction(BaseModel):
    """An action on a user, an API key, or an invocation, which has no audit log."""

    at: datetime
    actor: str
    action: str
    subject: str
    details: str


class RightsStatement(BaseModel):
    """A user's rights, as published to the engine.

    Args:
        user_name: The user.
        roles: The roles.
        active: False for a disabled user.
        revoked_before: Links, delegations and credentials issued up to this time are invalid.
        changed_at: The time of the latest change.
        changed_by: The user who made it.
    """

    user_name: str
    roles: list[Role]
    active: bool
    revoked_before: datetime | None
    changed_at: datetime
    changed_by: str


class Users:
    """The users in the console's database. `by` is the acting user, for the log of actions."""

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        now: Clock = utc_now,
        *,
        action_retention: timedelta = ACTION_RETENTION,
    ) -> None:
        self._database = database
        self._action_retention = action_retention
        self._passwords = passwords
        self._now = now
        self._changed = asyncio.Event()

    async def all(self) -> list[User]:
        """Return all users, by name."""
        async with self._database.snapshot() as connection:
            rows = await connection.execute(select(UserRow.__table__).order_by(UserRow.name))
            return [_user(row) for row in rows]

    async def get(self, name: str) -> User:
        """Return a user.

        Raises:
            ConsoleError: There is no such user.
        """
        async with self._database.snapshot() as connection:
            rows = await connection.execute(select(UserRow.__table__).where(UserRow.name == canonical_user(name)))
            row = rows.first()
        if row is None:
            raise _no_user(name)
        return _user(row)

    async def add(
        self, name: str, password: str, roles: Iterable[Role], groups: Iterable[str] = (), *, by: str
    ) -> User:
        """Add a user with at least one role.

        Raises:
            ConsoleError: The name, password, roles or groups are invalid (400), or the name is taken (409).
        """
        user = User(
            name=_checked_name(name),
            roles=_checked_roles(roles),
            groups=_checked_groups(groups),
            disabled=False,
            created_at=self._now(),
        )
        hashed = await self._passwords.hash(password, Source(f"user {by}", known=True))
        try:
            async with self._database.transaction() as connection:
                await connection.execute(insert(UserRow).values(**_row(user), password_hash=hashed))
                await self._log(connection, by, "add", user.name, _describe(user))
                await self._record_rights(connection, user.name, by=by)
        except IntegrityError as error:
            raise ConsoleError(409, "name_taken", f"user '{user.name}' already exists") from error
        self._changed.set()
        return user

    async def change(
        self,
        name: str,
        *,
        roles: Iterable[Role] | None = None,
        groups: Iterable[str] | None = None,
        disabled: bool | None = None,
        by: str,
    ) -> User:
        """Change a user's rights, which ends the user's sessions, links and delegations. None keeps a value.

        Raises:
            ConsoleError: There is no such user (404), a value is invalid (400), or no active administrator would remain
                (409).
        """
        async with self._database.transaction() as connection:
            rows = list(await connection.execute(select(UserRow.__table__)))
            users = {row.name: _user(row) for row in rows}
            before = users.get(canonical_user(name))
            if before is None:
                raise _no_user(name)
            after = before.model_copy(
                update={
                    "roles": before.roles if roles is None else _checked_roles(roles),
                    "groups": before.groups if groups is None else _checked_groups(groups),
                    "disabled": before.disabled if disabled is None else disabled,
                }
            )
            users[after.name] = after
            if not any(Role.ADMINISTRATOR in user.roles and not user.disabled for user in users.values()):
                raise ConsoleError(
                    409, "last_administrator", "no active administrator would remain; add another administrator first"
                )
            await connection.execute(update(UserRow).where(UserRow.name == after.name).values(**_row(after)))
            await connection.execute(delete(SessionRow).where(SessionRow.user_name == after.name))
            await self._log(connection, by, "change", after.name, _describe(after))
            await self._record_rights(connection, after.name, by=by, revokes=True)
        self._changed.set()
        return after

    async def revoke_links(self, name: str, *, by: str) -> None:
        """Revoke the links, delegations and key files that a user has. Roles and sessions stay.

        Raises:
            ConsoleError: There is no such user.
        """
        user = await self.get(name)
        async with self._database.transaction() as connection:
            await self._log(connection, by, "revoke links", user.name, "")
            await self._record_rights(connection, user.name, by=by, revokes=True)
        self._changed.set()

    async def unpublished_rights(self) -> list[RightsStatement]:
        """Return the rights whose latest change the engine has not received, in the order of the changes."""
        is_unpublished = RightsRow.published.is_(None) | (RightsRow.published < RightsRow.changed_at)
        query = (
            select(RightsRow.__table__, UserRow.roles, UserRow.disabled)
            .join(UserRow, UserRow.name == RightsRow.user_name)
            .where(is_unpublished)
            .order_by(RightsRow.changed_at)
        )
        async with self._database.snapshot() as connection:
            rows = await connection.execute(query)
            return [RightsStatement.model_validate({**row._asdict(), "active": not row.disabled}) for row in rows]

    async def mark_published(self, statement: RightsStatement) -> None:
        """Record that the engine has received a statement. A later change stays unpublished."""
        async with self._database.transaction() as connection:
            published = update(RightsRow).where(
                RightsRow.user_name == statement.user_name, RightsRow.changed_at == statement.changed_at
            )
            await connection.execute(published.values(published=statement.changed_at))

    async def wait_for_change(self, timeout: timedelta) -> None:
        """Wait for the next change of rights in this process, at most for the timeout."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout.total_seconds())
        self._changed.clear()

    async def set_password(self, name: str, password: str, *, by: str) -> None:
        """Set a user's password. Ends the user's sessions, clears failed sign-ins and forgets known devices.

        Raises:
            ConsoleError: There is no such user, or the password is invalid.
        """
        user = await self.get(name)
        hashed = await self._passwords.hash(password, Source(f"user {by}", known=True))
        async with self._database.transaction() as connection:
            await connection.execute(update(UserRow).where(UserRow.name == user.name).values(password_hash=hashed))
            await connection.execute(delete(SessionRow).where(SessionRow.user_name == user.name))
            await connection.execute(delete(DeviceRow).where(DeviceRow.user_name == user.name))
            await failed_sign_ins.clear(connection, user.name)
            await self._log(connection, by, "password", user.name, "")

    async def verify_password(self, name: str, password: str, source: Source) -> bool:
        """Verify a user's password, in the same time for an unknown name.

        Raises:
            ConsoleError: Too many requests are waiting.
        """
        async with self._database.snapshot() as connection:
            query = select(UserRow.password_hash, UserRow.disabled).where(UserRow.name == canonical_user(name))
            row = (await connection.execute(query)).first()
        is_correct = await self._passwords.verify(None if row is None else row.password_hash, password, source)
        return is_correct and row is not None and not row.disabled

    async def actions(self, limit: int = 50) -> list[UserAction]:
        """Return the latest actions, newest first."""
        async with self._database.snapshot() as connection:
            rows = await connection.execute(select(ActionRow.__table__).order_by(ActionRow.number.desc()).limit(limit))
            return [UserAction.model_validate(row._asdict()) for row in rows]

    async def record(self, actor: str, action: str, subject: str, details: str = "") -> None:
        """Record an action for which the engine stores no actor."""
        async with self._database.transaction() as connection:
            await self._log(connection, actor, action, subject, details)

    async def _record_rights(self, connection: AsyncConnection, user: str, *, by: str, revokes: bool = False) -> None:
        """Record a change of rights in the transaction of the change, to be published later."""
        found = await connection.execute(select(RightsRow.__table__).where(RightsRow.user_name == user))
        before = found.first()
        at = self._now()
        if before is not None:  # strictly increasing, even if the clock goes back
            at = max(at, before.changed_at + timedelta(microseconds=1))
        values: dict[str, Any] = {"changed_at": at, "changed_by": by} | ({"revoked_before": at} if revokes else {})
        if before is None:
            await connection.execute(insert(RightsRow).values(user_name=user, **values))
        else:
            await connection.execute(update(RightsRow).where(RightsRow.user_name == user).values(**values))

    async def _log(self, connection: AsyncConnection, actor: str, action: str, subject: str, details: str) -> None:
        entry = {"at": self._now(), "actor": actor, "action": action, "subject": subject, "details": details}
        await connection.execute(delete(ActionRow).where(ActionRow.at < self._now() - self._action_retention))
        await connection.execute(insert(ActionRow).values(**entry))


def _user(row: object) -> User:
    return User.model_validate(row, from_attributes=True)


def _row(user: User) -> dict[str, object]:
    return {
        "name": user.name,
        "roles": sorted(user.roles),
        "groups": user.groups,
        "disabled": user.disabled,
        "created_at": user.created_at,
    }


def _describe(user: User) -> str:
    groups = f"; groups {', '.join(user.groups)}" if user.groups else ""
    return f"roles {', '.join(sorted(user.roles))}{groups}{'; disabled' if user.disabled else ''}"


def _no_user(name: str) -> ConsoleError:
    return not_found(f"no user '{name[:200]}'")


def _checked_name(name: str) -> str:
    try:
        user = check_user(name)
    except ValueError as error:
        raise invalid(f"name: {error}") from error
    if len(user) > 200:
        raise invalid("a user name has at most 200 characters")
    return user


def _checked_roles(roles: Iterable[Role]) -> frozenset[Role]:
    held = frozenset(roles)
    if not held:
        raise invalid(f"a user needs at least one role: {', '.join(Role)}")
    return held


def _checked_groups(groups: Iterable[str]) -> list[str]:
    try:
        names = sorted({check_group(check_name(group).removeprefix(GROUP_PREFIX)) for group in groups if group.strip()})
    except ValueError as error:
        raise invalid(f"groups: {error}") from error
    if len(names) > 50 or any(len(name) > 100 for name in names):
        raise invalid("a user has at most 50 groups with names of at most 100 characters")
    return names

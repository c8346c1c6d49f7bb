"""Keys with which programs call handlers through the gateway. Who reads the table has none of them: it holds hashes."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final

from pydantic import BaseModel
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from services.console.people.database import Database
from services.console.people.persons import Clock, utc_now
from services.console.people.tables import ActionRow, ApiKeyRow
from services.console.problems import ConsoleError, invalid, not_found

PREFIX: Final = "pdk_"
"""Begins every key, so that one that leaks can be told from other secrets."""

_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}/(?:\*|[A-Za-z][A-Za-z0-9_.-]{0,127})")


class ApiKey(BaseModel):
    """A key, without what makes it a secret.

    Args:
        name: Whose it is, for example ``shop``.
        handlers: What it may call: ``Service/handler``, or ``Service/*``.
        created_at: Since when.
        created_by: Who made it.
        expires_at: When it ends; None for never.
    """

    name: str
    handlers: list[str]
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None

    def allows(self, handler: str) -> bool:
        """Tell if it may call a handler.

        Args:
            handler: ``Service/handler``.
        """
        return any(fnmatchcase(handler, pattern) for pattern in self.handlers)


class ApiKeys:
    """The keys in the console's database.

    Args:
        database: The database.
        now: The clock.
    """

    def __init__(self, database: Database, now: Clock = utc_now) -> None:
        self._database = database
        self._now = now

    async def add(
        self, name: str, handlers: Iterable[str], *, lifetime: timedelta | None = None, by: str
    ) -> tuple[str, ApiKey]:
        """Make a key.

        Args:
            name: Whose it is.
            handlers: What it may call.
            lifetime: How long it lasts; None for ever.
            by: Who makes it.

        Returns:
            The key itself, which is kept nowhere, and what is known of it.

        Raises:
            ConsoleError: The name is taken, or a handler is none.
        """
        allowed = sorted(set(handlers))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}", name):
            raise invalid("a key's name has 1 to 100 letters, digits and .-_@")
        if not allowed or any(not _PATTERN.fullmatch(each) for each in allowed):
            raise invalid("say what the key may call, as Service/handler or Service/*")
        secret, now = PREFIX + secrets.token_urlsafe(32), self._now()
        key = ApiKey(
            name=name,
            handlers=allowed,
            created_at=now,
            created_by=by,
            expires_at=None if lifetime is None else now + lifetime,
        )
        try:
            async with self._database.transaction() as connection:
                await connection.execute(insert(ApiKeyRow).values(hash=_hash(secret), **key.model_dump()))
                await connection.execute(insert(ActionRow).values(**_act(now, by, "key", name, ", ".join(allowed))))
        except IntegrityError as error:
            raise ConsoleError(409, "name_taken", f"there is a key '{name}' already") from error
        return secret, key

    async def all(self) -> list[ApiKey]:
        """Return all keys, by name."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(ApiKeyRow.__table__).order_by(ApiKeyRow.name))
            return [ApiKey.model_validate(row, from_attributes=True) for row in rows]

    async def find(self, secret: str) -> ApiKey | None:
        """Return what is known of a key; None when it is none, or has ended.

        Args:
            secret: The key itself.
        """
        async with self._database.reading() as connection:
            found = await connection.execute(select(ApiKeyRow.__table__).where(ApiKeyRow.hash == _hash(secret)))
            row = found.first()
        if row is None or (row.expires_at is not None and row.expires_at <= self._now()):
            return None
        return ApiKey.model_validate(row, from_attributes=True)

    async def remove(self, name: str, *, by: str) -> None:
        """End a key.

        Args:
            name: Which.
            by: Who ends it.

        Raises:
            ConsoleError: There is none of this name.
        """
        async with self._database.transaction() as connection:
            done = await connection.execute(delete(ApiKeyRow).where(ApiKeyRow.name == name))
            if not done.rowcount:
                raise not_found(f"there is no key '{name[:100]}'")
            await connection.execute(insert(ActionRow).values(**_act(self._now(), by, "remove key", name, "")))


def _hash(secret: str) -> str:
    # A plain hash is enough for 256 random bits: there is nothing to guess.
    return hashlib.sha256(secret.encode()).hexdigest()


def _act(at: datetime, actor: str, act: str, name: str, details: str) -> dict[str, object]:
    return {"at": at, "actor": actor, "act": act, "person": name, "details": details}

"""API keys, with which programs call handlers through the gateway. The database stores only hashes."""

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

from services.console.auth.users import Clock, utc_now
from services.console.database import Database
from services.console.problems import ConsoleError, invalid, not_found
from services.console.tables import ActionRow, ApiKeyRow

PREFIX: Final = "pdk_"
"""The prefix of every key, by which secret scanners recognise a leaked one."""

_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}/(?:\*|[A-Za-z][A-Za-z0-9_.-]{0,127})")


class ApiKey(BaseModel):
    """An API key without its secret.

    Args:
        name: The program, for example ``shop``.
        handlers: The permitted handlers: ``Service/handler`` or ``Service/*``.
        created_at: When it was created.
        created_by: The administrator who created it.
        expires_at: When it expires; None for never.
    """

    name: str
    handlers: list[str]
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None

    def permits(self, handler: str) -> bool:
        """Return whether the key may call ``Service/handler``."""
        return any(fnmatchcase(handler, pattern) for pattern in self.handlers)


class ApiKeys:
    """The API keys in the console's database. `by` is the acting user, for the log of actions."""

    def __init__(self, database: Database, now: Clock = utc_now) -> None:
        self._database = database
        self._now = now

    async def add(
        self, name: str, handlers: Iterable[str], *, lifetime: timedelta | None = None, by: str
    ) -> tuple[str, ApiKey]:
        """Create a key and return its secret, which is not stored, and the key.

        Raises:
            ConsoleError: The name or a handler is invalid (400), or the name is taken (409).
        """
        permitted = sorted(set(handlers))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}", name):
            raise invalid("the name of a key needs 1 to 100 letters, digits and .-_@")
        if not permitted or any(not _PATTERN.fullmatch(handler) for handler in permitted):
            raise invalid("list the handlers that the key may call, as Service/handler or Service/*")
        secret, now = PREFIX + secrets.token_urlsafe(32), self._now()
        key = ApiKey(
            name=name,
            handlers=permitted,
            created_at=now,
            created_by=by,
            expires_at=None if lifetime is None else now + lifetime,
        )
        try:
            async with self._database.transaction() as connection:
                await connection.execute(insert(ApiKeyRow).values(hash=_hash(secret), **key.model_dump()))
                action = _action(now, by, "create key", name, ", ".join(permitted))
                await connection.execute(insert(ActionRow).values(**action))
        except IntegrityError as error:
            raise ConsoleError(409, "name_taken", f"API key '{name}' already exists") from error
        return secret, key

    async def all(self) -> list[ApiKey]:
        """Return all keys, by name."""
        async with self._database.snapshot() as connection:
            rows = await connection.execute(select(ApiKeyRow.__table__).order_by(ApiKeyRow.name))
            return [ApiKey.model_validate(row, from_attributes=True) for row in rows]

    async def find(self, secret: str) -> ApiKey | None:
        """Return the key of a secret; None for an unknown or expired one."""
        async with self._database.snapshot() as connection:
            found = await connection.execute(select(ApiKeyRow.__table__).where(ApiKeyRow.hash == _hash(secret)))
            row = found.first()
        if row is None or (row.expires_at is not None and row.expires_at <= self._now()):
            return None
        return ApiKey.model_validate(row, from_attributes=True)

    async def revoke(self, name: str, *, by: str) -> None:
        """Revoke a key.

        Raises:
            ConsoleError: There is no such key.
        """
        async with self._database.transaction() as connection:
            deleted = await connection.execute(delete(ApiKeyRow).where(ApiKeyRow.name == name))
            if not deleted.rowcount:
                raise not_found(f"no API key '{name[:100]}'")
            await connection.execute(insert(ActionRow).values(**_action(self._now(), by, "revoke key", name, "")))


def _hash(secret: str) -> str:
    # A plain hash is sufficient for 256 random bits.
    return hashlib.sha256(secret.encode()).hexdigest()


def _action(at: datetime, actor: str, action: str, subject: str, details: str) -> dict[str, object]:
    return {"at": at, "actor": actor, "action": action, "subject": subject, "details": details}

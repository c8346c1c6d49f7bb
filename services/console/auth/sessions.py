"""Sessions of users, from sign-in until they expire, are ended, or the user's rights change."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Row, delete, insert, select, update

from services.console.auth.users import Clock, User, utc_now
from services.console.database import Database
from services.console.tables import SessionRow, UserRow

_TOUCH_INTERVAL = timedelta(minutes=1)


@dataclass(frozen=True)
class Session:
    """An active session and its user.

    Args:
        id: The stored ID, which is not the token.
        user: The user.
        csrf: The token that forms and scripts of this session send with a change.
        ends_at: When the session ends at the latest.
    """

    id: str
    user: User
    csrf: str
    ends_at: datetime


class SessionInfo(BaseModel):
    """A session, as shown to its user."""

    created_at: datetime
    seen_at: datetime
    ends_at: datetime
    address: str
    agent: str
    is_current: bool


class Sessions:
    """The sessions in the console's database, which end after `idle` without use and after `length` in any case."""

    def __init__(self, database: Database, *, idle: timedelta, length: timedelta, now: Clock = utc_now) -> None:
        self._database = database
        self._idle = idle
        self._length = length
        self._now = now
        self._touch_interval = min(_TOUCH_INTERVAL, idle / 10)

    async def start(self, user: str, *, address: str, agent: str) -> tuple[str, SessionInfo, str]:
        """Start a session, and return its token (stored only as a hash), the session and its CSRF token."""
        token, csrf, now = secrets.token_urlsafe(32), secrets.token_urlsafe(32), self._now()
        info = SessionInfo(
            created_at=now,
            seen_at=now,
            ends_at=now + self._length,
            address=address[:64],
            agent=agent[:300],
            is_current=True,
        )
        async with self._database.transaction() as connection:
            expired = (SessionRow.ends_at <= now) | (SessionRow.seen_at <= now - self._idle)
            await connection.execute(delete(SessionRow).where(expired))
            values = info.model_dump(exclude={"is_current"})
            await connection.execute(insert(SessionRow).values(id=_hash(token), user_name=user, csrf=csrf, **values))
        return token, info, csrf

    async def find(self, token: str, *, touch: bool = True) -> Session | None:
        """Return the active session of a token. `touch` counts as use, unlike the refresh of an open page."""
        return await self._find(_hash(token), touch=touch)

    async def is_active(self, session: Session) -> bool:
        """Return whether a session is still active, without counting as use."""
        return await self._find(session.id, touch=False) is not None

    async def _find(self, session_id: str, *, touch: bool) -> Session | None:
        now = self._now()
        query = select(SessionRow.__table__, UserRow.__table__).join_from(
            SessionRow, UserRow, SessionRow.user_name == UserRow.name
        )
        async with self._database.snapshot() as connection:
            row = (await connection.execute(query.where(SessionRow.id == session_id))).first()
        if row is None or row.disabled or row.ends_at <= now or row.seen_at <= now - self._idle:
            return None
        if touch and now - row.seen_at >= self._touch_interval:
            async with self._database.transaction() as connection:
                await connection.execute(update(SessionRow).where(SessionRow.id == session_id).values(seen_at=now))
        user = User.model_validate(row, from_attributes=True)
        return Session(id=row.id, user=user, csrf=row.csrf, ends_at=row.ends_at)

    async def all_of(self, session: Session) -> list[SessionInfo]:
        """Return all sessions of a session's user, newest first."""
        now = self._now()
        query = (
            select(SessionRow.__table__)
            .where(SessionRow.user_name == session.user.name)
            .where(SessionRow.ends_at > now, SessionRow.seen_at > now - self._idle)
            .order_by(SessionRow.created_at.desc())
        )
        async with self._database.snapshot() as connection:
            rows = list(await connection.execute(query))
        return [SessionInfo(**_columns(row), is_current=row.id == session.id) for row in rows]

    async def end(self, session: Session) -> None:
        """End a session."""
        async with self._database.transaction() as connection:
            await connection.execute(delete(SessionRow).where(SessionRow.id == session.id))

    async def end_all(self, user: str) -> None:
        """End all sessions of a user."""
        async with self._database.transaction() as connection:
            await connection.execute(delete(SessionRow).where(SessionRow.user_name == user))

    async def set_notice(self, session: Session, notice: str) -> None:
        """Store a message for the next page of a session."""
        async with self._database.transaction() as connection:
            changed = update(SessionRow).where(SessionRow.id == session.id).values(notice=notice[:2000])
            await connection.execute(changed)

    async def pop_notice(self, session: Session) -> str | None:
        """Return and delete the stored message."""
        own = SessionRow.id == session.id
        async with self._database.snapshot() as connection:
            notice = await connection.scalar(select(SessionRow.notice).where(own))
        if notice is not None:
            async with self._database.transaction() as connection:
                await connection.execute(update(SessionRow).where(own).values(notice=None))
        return notice


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _columns(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("created_at", "seen_at", "ends_at", "address", "agent")}

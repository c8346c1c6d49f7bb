"""Sessions: who is signed in, from sign-in to their end by time, by the person, or by a change of their rights."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Row, delete, insert, select, update

from services.console.people.database import Database
from services.console.people.persons import Clock, Person, utc_now
from services.console.people.tables import SessionRow, UserRow

_SEEN_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class SignedIn:
    """Somebody who is signed in.

    Args:
        session_id: The session, as it is kept; not its token.
        person: Who.
        csrf: The token that forms and scripts of this session have to show with a change.
        ends_at: When the session ends at the latest.
    """

    session_id: str
    person: Person
    csrf: str
    ends_at: datetime


class SessionInfo(BaseModel):
    """One of a person's sessions, as it is shown to them."""

    created_at: datetime
    seen_at: datetime
    ends_at: datetime
    address: str
    agent: str
    is_this: bool


class Sessions:
    """The sessions in the console's database.

    Args:
        database: The database.
        idle: A session ends when it isn't used for this long.
        length: A session ends after this long.
        now: The clock.
    """

    def __init__(self, database: Database, *, idle: timedelta, length: timedelta, now: Clock = utc_now) -> None:
        self._database = database
        self._idle = idle
        self._length = length
        self._now = now
        self._seen_every = min(_SEEN_EVERY, idle / 10)

    async def begin(self, person: str, *, address: str, agent: str) -> tuple[str, SessionInfo, str]:
        """Begin a session, and forget those that ended.

        Args:
            person: Whose.
            address: From where.
            agent: By which browser.

        Returns:
            The session's token, which is kept nowhere; the session; and its token against forged forms.
        """
        token, csrf, now = secrets.token_urlsafe(32), secrets.token_urlsafe(32), self._now()
        info = SessionInfo(
            created_at=now,
            seen_at=now,
            ends_at=now + self._length,
            address=address[:64],
            agent=agent[:300],
            is_this=True,
        )
        async with self._database.transaction() as connection:
            over = (SessionRow.ends_at <= now) | (SessionRow.seen_at <= now - self._idle)
            await connection.execute(delete(SessionRow).where(over))
            values = info.model_dump(exclude={"is_this"})
            await connection.execute(insert(SessionRow).values(id=_hash(token), person=person, csrf=csrf, **values))
        return token, info, csrf

    async def find(self, token: str, *, uses: bool = True) -> SignedIn | None:
        """Return who is signed in with a token; None when nobody is, or not any more.

        Args:
            token: The session's token.
            uses: Whether the session is used by that. A page that fetches a part of itself again is not.
        """
        return await self._find(_hash(token), uses=uses)

    async def still(self, signed_in: SignedIn) -> bool:
        """Tell if a session goes on, without using it; for a page that stays open.

        Args:
            signed_in: The session.
        """
        return await self._find(signed_in.session_id, uses=False) is not None

    async def _find(self, session_id: str, *, uses: bool = True) -> SignedIn | None:
        now = self._now()
        both = select(SessionRow.__table__, UserRow.__table__).join_from(
            SessionRow, UserRow, SessionRow.person == UserRow.name
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(both.where(SessionRow.id == session_id))).first()
        if row is None or row.disabled or row.ends_at <= now or row.seen_at <= now - self._idle:
            return None
        if uses and now - row.seen_at >= self._seen_every:
            async with self._database.transaction() as connection:
                await connection.execute(update(SessionRow).where(SessionRow.id == session_id).values(seen_at=now))
        person = Person.model_validate(row, from_attributes=True)
        return SignedIn(session_id=row.id, person=person, csrf=row.csrf, ends_at=row.ends_at)

    async def of(self, signed_in: SignedIn) -> list[SessionInfo]:
        """Return all sessions of the person who is signed in, the newest first.

        Args:
            signed_in: Who.
        """
        now = self._now()
        theirs = (
            select(SessionRow.__table__)
            .where(SessionRow.person == signed_in.person.name)
            .where(SessionRow.ends_at > now, SessionRow.seen_at > now - self._idle)
            .order_by(SessionRow.created_at.desc())
        )
        async with self._database.reading() as connection:
            rows = list(await connection.execute(theirs))
        return [SessionInfo(**_facts(row), is_this=row.id == signed_in.session_id) for row in rows]

    async def end(self, signed_in: SignedIn) -> None:
        """End a session.

        Args:
            signed_in: Which.
        """
        async with self._database.transaction() as connection:
            await connection.execute(delete(SessionRow).where(SessionRow.id == signed_in.session_id))

    async def end_all(self, person: str) -> int:
        """End all sessions of a person, and return how many there were.

        Args:
            person: Whose.
        """
        async with self._database.transaction() as connection:
            done = await connection.execute(delete(SessionRow).where(SessionRow.person == person))
        return done.rowcount

    async def leave_notice(self, signed_in: SignedIn, notice: str) -> None:
        """Keep a sentence for the next page of a session.

        Args:
            signed_in: Which session.
            notice: The sentence.
        """
        async with self._database.transaction() as connection:
            changed = update(SessionRow).where(SessionRow.id == signed_in.session_id).values(notice=notice[:2000])
            await connection.execute(changed)

    async def take_notice(self, signed_in: SignedIn) -> str | None:
        """Return the sentence that was kept, and forget it.

        Args:
            signed_in: Which session.
        """
        mine = SessionRow.id == signed_in.session_id
        async with self._database.reading() as connection:
            notice = await connection.scalar(select(SessionRow.notice).where(mine))
        if notice is not None:
            async with self._database.transaction() as connection:
                await connection.execute(update(SessionRow).where(mine).values(notice=None))
        return notice


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _facts(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("created_at", "seen_at", "ends_at", "address", "agent")}

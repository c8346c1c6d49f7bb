"""Idempotency table: a write takes effect once per key.

A write carries the key of its caller, and its compensation carries the same key. The row of a key has one state:

    performed     The write is committed. A repeat returns the recorded result; a compensation reverses it.
    compensated   The write was reversed. A repeated compensation returns the recorded answer; a late write is refused.
    voided        The compensation came first. The write is refused when it arrives.

The row and the change commit in one transaction. Concurrent requests race for the primary key of the row: each waits
for the first to commit or roll back. The pattern is the idempotent receiver of Hohpe and Woolf, "Enterprise Integration
Patterns", extended by compensations, which may arrive before their writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NamedTuple, TypeVar, cast

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from sqlalchemy import CheckConstraint, Column, DateTime, Index, MetaData, Table, Text, delete, select, update
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from perdure._runtime.serdes import serde_for
from perdure.errors import CODE_KEY, ConfigurationError, Conflict
from perdure.sql._connections import (
    AnyAsyncConnection,
    SyncConnection,
    changed_rows,
    check_text,
    insert_into,
    now,
    run_sync,
    transaction_of,
)

R = TypeVar("R")  # the result of the write
C = TypeVar("C")  # the result of its compensation

MINIMUM_RETENTION: Final = timedelta(days=30)
"""Shortest time for which `IdempotencyTable.purge` keeps a row. It outlasts retries, dead letters and held steps."""


class _Claim(NamedTuple):
    """The key of a request, with the write that it identifies."""

    key: str
    action: str
    subject: str


class _Operation(NamedTuple):
    """A stored row. The state determines which of the last four columns are null; those are never read."""

    action: str
    subject: str
    state: str
    request_digest: str
    result: str
    compensation_digest: str
    compensation_result: str


class _Recorded(NamedTuple):
    """The recorded result of an earlier request, as JSON."""

    result: str


class IdempotencyTable:
    """Table of the keys under which writes took effect.

    Give each service a table of its own. The table becomes part of the metadata, so migrations and
    ``metadata.create_all`` create it, see `perdure.sql.migrations`.

    Args:
        metadata: The metadata of your tables.
        name: The name of the table.

    Example:
        operations = IdempotencyTable(Base.metadata)

        async def charge(request: ChargeCard) -> Charge:
            async with sessions.begin() as session:
                change = lambda: _charge(session, request)
                return await operations.perform(
                    session, request.key, change, action="charge", request=request, result=Charge
                )
    """

    def __init__(self, metadata: MetaData, name: str = "perdure_operations") -> None:
        self.table = Table(name, metadata, *columns())

    async def perform(
        self,
        connection: AnyAsyncConnection,
        key: str,
        write: Callable[[], Awaitable[R]],
        *,
        action: str,
        request: Any,
        result: type[R],
        subject: str = "",
    ) -> R:
        """Perform a write once per key.

        Args:
            connection: A connection or session in a transaction, which the caller commits.
            key: The idempotency key of the caller.
            write: Makes the change in the same transaction and returns its result. If it raises, let the transaction
                roll back; the key is free then.
            action: Name of the write, for example ``"charge"``. A repeat must name the same action.
            request: The request. A repeat must have the same fields; fields with default values do not count.
            result: Type of the result.
            subject: The business ID that the write belongs to, such as an order's. A repeat and the compensation must
                name the same.

        Returns:
            The result of the first execution.

        Raises:
            Conflict: The key belongs to another request, action or subject, or the write was compensated, or its
                compensation came first (409).
            ConfigurationError: The connection commits each statement, or its database is not supported.
            PerdureTerminalError: The result would be read back changed.
        """
        recorded = await run_sync(connection, lambda sync: self._begin(sync, _Claim(key, action, subject), request))
        if recorded is not None:
            return _load(result, recorded.result)
        try:
            outcome = await write()
            await run_sync(connection, lambda sync: self._end(sync, key, action, result, outcome))
        except Exception:
            await run_sync(connection, lambda sync: self._release(sync, key))
            raise
        return outcome

    def perform_sync(
        self,
        connection: SyncConnection,
        key: str,
        write: Callable[[], R],
        *,
        action: str,
        request: Any,
        result: type[R],
        subject: str = "",
    ) -> R:
        """Perform a write once per key on a synchronous connection or session. See `perform`."""
        recorded = self._begin(connection, _Claim(key, action, subject), request)
        if recorded is not None:
            return _load(result, recorded.result)
        try:
            outcome = write()
            self._end(connection, key, action, result, outcome)
        except Exception:
            self._release(connection, key)
            raise
        return outcome

    async def compensate(
        self,
        connection: AnyAsyncConnection,
        key: str,
        reverse: Callable[[R], Awaitable[C]],
        *,
        action: str,
        request: Any,
        performed: type[R],
        voided: C,
        subject: str = "",
    ) -> C:
        """Compensate a write once, or void its key if the write has not arrived.

        Args:
            connection: A connection or session in a transaction, which the caller commits.
            key: The key of the write.
            reverse: Reverses the change in the same transaction; receives the result of the write.
            action: Name of the write, as `perform` got it.
            request: The request of the compensation.
            performed: Type of the write's result.
            voided: The answer when the write has not arrived. Its type is that of all answers.
            subject: The business ID of the write.

        Returns:
            The result of the first execution of ``reverse``, or ``voided``.

        Raises:
            Conflict: The key belongs to another action or subject, or another request compensated the write (409).
            ConfigurationError: The connection commits each statement, or its database is not supported.
        """
        claim = _Claim(key, action, subject)
        found = await run_sync(connection, lambda sync: self._begin_compensation(sync, claim, request, voided))
        if isinstance(found, _Recorded):
            return _load(type(voided), found.result)
        try:
            outcome = await reverse(_load(performed, found))
            await run_sync(connection, lambda sync: self._end_compensation(sync, key, action, voided, outcome))
        except Exception:
            await run_sync(connection, lambda sync: self._release_compensation(sync, key))
            raise
        return outcome

    def compensate_sync(
        self,
        connection: SyncConnection,
        key: str,
        reverse: Callable[[R], C],
        *,
        action: str,
        request: Any,
        performed: type[R],
        voided: C,
        subject: str = "",
    ) -> C:
        """Compensate a write once on a synchronous connection or session. See `compensate`."""
        claim = _Claim(key, action, subject)
        found = self._begin_compensation(connection, claim, request, voided)
        if isinstance(found, _Recorded):
            return _load(type(voided), found.result)
        try:
            outcome = reverse(_load(performed, found))
            self._end_compensation(connection, key, action, voided, outcome)
        except Exception:
            self._release_compensation(connection, key)
            raise
        return outcome

    async def purge(
        self,
        connection: AnyAsyncConnection,
        older_than: timedelta = timedelta(days=90),
        *,
        limit: int = 1000,
    ) -> int:
        """Delete old rows of reversed and voided writes, and return their number.

        A write that arrives later takes effect. Rows of performed writes stay: without its row, a redriven compensation
        would void the key instead of reversing the write. Delete such a row only together with its business record.

        Args:
            connection: A connection or session in a transaction.
            older_than: Age of the rows to delete; at least 30 days.
            limit: Maximum number of rows, since a transaction blocks other writers of SQLite. If so many were
                deleted, purge again in another transaction.

        Raises:
            ConfigurationError: The age is too low.
        """
        return await run_sync(connection, lambda sync: self.purge_sync(sync, older_than, limit=limit))

    def purge_sync(
        self, connection: SyncConnection, older_than: timedelta = timedelta(days=90), *, limit: int = 1000
    ) -> int:
        """Delete old rows on a synchronous connection or session. See `purge`."""
        if older_than < MINIMUM_RETENTION:
            raise ConfigurationError(
                f"rows of {self.table.name} are kept for at least {MINIMUM_RETENTION.days} days, since a write that "
                f"arrives later takes effect; got {older_than}"
            )
        columns = self.table.c
        old = select(columns.key).where(
            columns.state.in_(("compensated", "voided")), columns.created_at < now() - older_than
        )
        statement = delete(self.table).where(columns.key.in_(old.limit(limit)))
        return changed_rows(transaction_of(connection), statement)

    def _begin(self, connection: SyncConnection, claim: _Claim, request: Any) -> _Recorded | None:
        """Claim a key for a write; return the recorded result if it was performed before."""
        digest = _digest(request)
        inner = transaction_of(connection)
        if self._insert(inner, claim, state="performed", request_digest=digest):
            return None
        operation = self._stored(inner, claim)
        if operation.state == "voided":
            raise Conflict(
                f"key '{claim.key}' was cancelled before its {claim.action} arrived: use a new key",
                metadata={CODE_KEY: "operation_voided"},
            )
        if operation.request_digest != digest:
            raise Conflict(f"key '{claim.key}' was used for a different {claim.action} request: use a new key")
        if operation.state == "compensated":
            raise Conflict(
                f"key '{claim.key}' was compensated: {claim.action} cannot run again under it",
                metadata={CODE_KEY: "operation_compensated"},
            )
        return _Recorded(operation.result)

    def _end(self, connection: SyncConnection, key: str, action: str, type_: type[R], result: R) -> None:
        self._update(connection, key, result=_dump(type_, result, f"the result of {action}"))

    def _release(self, connection: SyncConnection, key: str) -> None:
        """Free the key of a failed write, in case the caller commits the transaction nevertheless."""
        with suppress(DBAPIError, InvalidRequestError):  # the database has ended the transaction
            connection.execute(delete(self.table).where(self.table.c.key == key))

    def _begin_compensation(
        self, connection: SyncConnection, claim: _Claim, request: Any, voided: Any
    ) -> _Recorded | str:
        """Claim the compensation of a key; return the recorded answer, or the result of the write to reverse."""
        digest = _digest(request)
        answer = _dump(type(voided), voided, f"the answer of {claim.action}'s compensation")
        inner = transaction_of(connection)
        if self._insert(inner, claim, state="voided", compensation_digest=digest, compensation_result=answer):
            return _Recorded(answer)
        claimed = changed_rows(
            inner,
            update(self.table)
            .where(*(self.table.c[name] == value for name, value in claim._asdict().items()))
            .where(self.table.c.state == "performed")
            .values(state="compensated", compensation_digest=digest),
        )
        operation = self._stored(inner, claim)
        if claimed:
            return operation.result
        if operation.compensation_digest != digest:
            raise Conflict(f"key '{claim.key}' was compensated by a different request")
        return _Recorded(operation.compensation_result)

    def _end_compensation(self, connection: SyncConnection, key: str, action: str, voided: C, answer: C) -> None:
        text = _dump(type(voided), answer, f"the answer of {action}'s compensation")
        self._update(connection, key, compensation_result=text)

    def _release_compensation(self, connection: SyncConnection, key: str) -> None:
        """Undo the claim of a failed compensation, in case the caller commits the transaction nevertheless."""
        with suppress(DBAPIError, InvalidRequestError):
            self._update(connection, key, state="performed", compensation_digest=None)

    def _insert(self, connection: Any, claim: _Claim, **values: str) -> bool:
        """Insert the row of a key; return False if it exists."""
        check_text("idempotency key", claim.key)
        row = {**claim._asdict(), "created_at": now(), **values}
        statement = insert_into(self.table, connection.dialect).values(**row).on_conflict_do_nothing()
        return changed_rows(connection, statement) == 1

    def _update(self, connection: SyncConnection, key: str, **values: str | None) -> None:
        connection.execute(update(self.table).where(self.table.c.key == key).values(**values))

    def _stored(self, connection: Any, claim: _Claim) -> _Operation:
        fields = [self.table.c[name] for name in _Operation._fields]
        operation = _Operation._make(connection.execute(select(*fields).where(self.table.c.key == claim.key)).one())
        for known, given in ((operation.action, claim.action), (operation.subject, claim.subject)):
            if known != given:
                raise Conflict(f"key '{claim.key}' belongs to '{known}', not to '{given}'")
        return operation


def columns() -> list[Any]:
    """Return the columns, constraints and indexes of the table."""
    return [
        Column("key", Text, primary_key=True),
        Column("action", Text, nullable=False),
        Column("subject", Text, nullable=False, index=True),
        Column("state", Text, nullable=False),
        Column("request_digest", Text),
        Column("result", Text),
        Column("compensation_digest", Text),
        Column("compensation_result", Text),
        Column("created_at", DateTime(timezone=True), nullable=False),
        CheckConstraint("state IN ('performed', 'compensated', 'voided')", name="state"),
        # For `purge`, which skips performed writes. Not partial: SQLite ignores a partial index for a list of states.
        Index(None, "state", "created_at"),
    ]


def _dump(type_: type[R], value: R, place: str) -> str:
    return serde_for(type_).write(value, place).decode()


def _load(type_: type[R], text: str) -> R:
    return cast("R", serde_for(type_).deserialize(text.encode()))


def _digest(request: Any) -> str:
    # Without defaults, so that adding a field to a message does not change the digests of running sagas.
    content = (
        request.model_dump(mode="json", exclude_defaults=True)
        if isinstance(request, BaseModel)
        else to_jsonable_python(request, bytes_mode="base64", inf_nan_mode="strings")
    )
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

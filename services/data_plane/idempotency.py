"""Idempotency table of the data plane: a write takes effect once per key.

A write carries its caller's key, and its compensation carries the same key. The row ``(service, key)`` has one state:

    performed     The write is committed. A repeat returns the stored result; a compensation reverses it.
    compensated   The write was reversed. A repeated compensation returns the stored answer; a late write is refused.
    voided        The compensation came first. The write is refused when it arrives.

The row and the business change commit in one transaction. Concurrent requests race for the row's primary key, and the
losers read the committed row.

Rows of reversed writes are purged. Rows in the state ``performed`` stay, because a compensation may come at any time:
an operator redrives a dead letter when its cause is fixed. Without the row, that compensation would void the key, and
the write would stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeVar

from pydantic import BaseModel
from sqlalchemy import CheckConstraint, Index, Text, Update, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from perdure.errors import Conflict
from services.contracts.messages import CompensationRequest, Write
from services.data_plane.database import Base, Database, Timestamped, insert_if_missing

Result = TypeVar("Result", bound=BaseModel)
Compensated = TypeVar("Compensated", bound=BaseModel)


_PURGE_BATCH: Final = 1000
"""Rows per transaction of a purge, which blocks other writers of SQLite."""


class OperationRow(Timestamped, Base):
    """State of one write."""

    __tablename__ = "operations"
    __table_args__ = (
        CheckConstraint("state IN ('performed', 'compensated', 'voided')", name="state"),
        # Not partial: the state of a row changes, and SQLite ignores a partial index for a list of states.
        Index("ix_operations_service_state_created_at", "service", "state", "created_at"),
    )

    service: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    trip_id: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    request_digest: Mapped[str | None] = mapped_column(Text)
    result: Mapped[str | None] = mapped_column(Text)
    compensation_digest: Mapped[str | None] = mapped_column(Text)
    compensation_result: Mapped[str | None] = mapped_column(Text)


class _Operation(NamedTuple):
    """A stored row. The state determines which of the last four columns are null; those are never read."""

    trip_id: str
    action: str
    state: str
    request_digest: str
    result: str
    compensation_digest: str
    compensation_result: str


class IdempotencyTable:
    """Idempotency table of one service.

    Args:
        database: The service's database.
        service: The service's name. Keys of different services are independent.
    """

    def __init__(self, database: Database, service: str) -> None:
        self._database = database
        self._service = service

    async def perform(
        self,
        action: str,
        request: Write,
        business: Callable[[AsyncConnection], Awaitable[Result]],
        result: type[Result],
    ) -> Result:
        """Perform a write once per key.

        Args:
            action: Name of the write, for example ``"reserve"``. A repeat must name the same action.
            request: The request with its key.
            business: Makes the change in the given transaction. Its exceptions roll the transaction back.
            result: Type of the result of ``business``.

        Returns:
            The result of the first execution.

        Raises:
            Conflict: The key belongs to another request, or the write was compensated or voided.
        """
        digest = _digest(request)
        async with self._database.transaction() as connection:
            if await self._is_first(connection, action, request, state="performed", request_digest=digest):
                outcome = await business(connection)
                await connection.execute(self._row(request.key).values(result=outcome.model_dump_json()))
                return outcome
            operation = await self._winner(connection, action, request)
            if operation.state == "voided":
                raise Conflict(
                    f"key '{request.key}' was cancelled before its {self._service}/{action} arrived: use a new key",
                    metadata={"code": "operation_voided"},
                )
            if operation.request_digest != digest:
                raise Conflict(
                    f"key: '{request.key}' was used for a different {self._service}/{action} request: use a new key"
                )
            if operation.state == "compensated":
                raise Conflict(
                    f"key '{request.key}' was compensated: {self._service}/{action} cannot run again under it",
                    metadata={"code": "operation_compensated"},
                )
            return result.model_validate_json(operation.result)

    async def compensate(
        self,
        action: str,
        request: CompensationRequest,
        business: Callable[[AsyncConnection, Result], Awaitable[Compensated]],
        performed: type[Result],
        voided: Compensated,
    ) -> Compensated:
        """Compensate a write once, or void its key if the write has not arrived.

        Args:
            action: Name of the write, for example ``"reserve"``.
            request: The request with the key of the write.
            business: Reverses the change in the given transaction; receives the result of the write. Its exceptions
                roll the transaction back.
            performed: Type of the write's result.
            voided: The answer when the write has not arrived.

        Returns:
            The result of the first execution of ``business``, or ``voided``.

        Raises:
            Conflict: The key belongs to another trip or action, or another request compensated the write.
        """
        digest = _digest(request)
        async with self._database.transaction() as connection:
            if await self._is_first(
                connection,
                action,
                request,
                state="voided",
                compensation_digest=digest,
                compensation_result=voided.model_dump_json(),
            ):
                return voided
            claim = await connection.execute(
                self._row(request.key)
                .where(OperationRow.state == "performed")
                .values(state="compensated", compensation_digest=digest)
            )
            operation = await self._winner(connection, action, request)
            if claim.rowcount == 1:
                outcome = await business(connection, performed.model_validate_json(operation.result))
                await connection.execute(self._row(request.key).values(compensation_result=outcome.model_dump_json()))
                return outcome
            if operation.compensation_digest != digest:
                raise Conflict(f"key '{request.key}' was compensated by a different request")
            return type(voided).model_validate_json(operation.compensation_result)

    async def purge(self, retention: timedelta) -> int:
        """Delete the rows of reversed writes whose first request is older than the retention; return their number."""
        keys = (
            select(OperationRow.key)
            .where(
                OperationRow.service == self._service,
                OperationRow.state.in_(("compensated", "voided")),
                OperationRow.created_at < datetime.now(UTC) - retention,
            )
            .limit(_PURGE_BATCH)
        )
        purged = 0
        while True:
            async with self._database.transaction() as connection:
                batch = delete(OperationRow).where(OperationRow.service == self._service, OperationRow.key.in_(keys))
                found = (await connection.execute(batch)).rowcount
            purged += found
            if found < _PURGE_BATCH:
                return purged

    async def _is_first(
        self, connection: AsyncConnection, action: str, request: Write | CompensationRequest, **fields: str
    ) -> bool:
        """Insert the row of a key; return False if it exists."""
        return await insert_if_missing(
            connection,
            OperationRow,
            service=self._service,
            key=request.key,
            trip_id=request.trip_id,
            action=action,
            **fields,
        )

    def _row(self, key: str) -> Update:
        return update(OperationRow).where(OperationRow.service == self._service, OperationRow.key == key)

    async def _winner(
        self, connection: AsyncConnection, action: str, request: Write | CompensationRequest
    ) -> _Operation:
        query = select(
            OperationRow.trip_id,
            OperationRow.action,
            OperationRow.state,
            OperationRow.request_digest,
            OperationRow.result,
            OperationRow.compensation_digest,
            OperationRow.compensation_result,
        ).where(OperationRow.service == self._service, OperationRow.key == request.key)
        operation = _Operation._make((await connection.execute(query)).one())
        if operation.trip_id != request.trip_id:
            raise Conflict(f"key: '{request.key}' belongs to trip '{operation.trip_id}', not to '{request.trip_id}'")
        if operation.action != action:
            raise Conflict(f"key: '{request.key}' belongs to {self._service}/{operation.action}, not to {action}")
        return operation


def _digest(request: BaseModel) -> str:
    # Without defaults, so that adding a field to a message does not change the digests of running trips.
    content = request.model_dump(mode="json", exclude_defaults=True)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()

"""The barrier: each write happens once, whatever is repeated, reordered or raced.

A write carries its caller's key, and its undo carries the same key. The row ``(service, key)`` decides what a request
may do:

    performed   the write is done: a repeat gets the stored result, an undo undoes it
    undone      it was done and undone: a repeated undo gets the stored answer, a late write is refused
    voided      the undo came first: the write that may still be on its way is refused when it arrives

Row and business change commit together or not at all, and the row's primary key decides every race: insert first, then
look at what won. A write that a business rule refuses leaves no row, so its key is free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from pydantic import BaseModel
from sqlalchemy import CheckConstraint, Text, Update, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from perdure.errors import Conflict
from services.contracts.messages import Undo, Write
from services.data_plane.database import Base, Database, Timestamped, insert_if_missing

Result = TypeVar("Result", bound=BaseModel)
Compensated = TypeVar("Compensated", bound=BaseModel)


class OperationRow(Timestamped, Base):
    """What became of one write."""

    __tablename__ = "operations"
    __table_args__ = (CheckConstraint("state IN ('performed', 'undone', 'voided')", name="state"),)

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
    """A row as stored. Its state says which of the last four are null, and those are not read."""

    trip_id: str
    action: str
    state: str
    request_digest: str
    result: str
    compensation_digest: str
    compensation_result: str


class IdempotencyTable:
    """The operations of one service.

    Args:
        database: Where the service keeps its rows; the barrier's are beside them.
        service: The service's name: keys of different services never meet.
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
        """Do a write once.

        Args:
            action: What is done, for example ``"reserve"``; part of what must be equal in a repeat.
            request: The caller's request, with its key.
            business: The change itself, inside the transaction it is given. What it raises is raised here, and nothing
                is kept.
            result: The type of what ``business`` returns.

        Returns:
            What ``business`` returned the first time.

        Raises:
            Conflict: The key stands for another request, or its write was undone, or voided before it started.
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
                    f"'{request.key}' was cancelled before it started: {self._service}/{action} can't be done any more",
                    metadata={"code": "operation_voided"},
                )
            if operation.request_digest != digest:
                raise Conflict(
                    f"key: '{request.key}' already stands for another {self._service}/{action} request; "
                    "a new request needs a key of its own"
                )
            if operation.state == "undone":
                raise Conflict(
                    f"'{request.key}' was done and undone: {self._service}/{action} can't be done any more",
                    metadata={"code": "operation_undone"},
                )
            return result.model_validate_json(operation.result)

    async def undo(
        self,
        action: str,
        request: Undo,
        business: Callable[[AsyncConnection, Result], Awaitable[Compensated]],
        performed: type[Result],
        voided: Compensated,
    ) -> Compensated:
        """Undo a write once, or see to it that it never happens.

        Args:
            action: The write that is undone, for example ``"reserve"``.
            request: The caller's request, with the key of the write.
            business: The change itself, inside the transaction it is given, with the result of the write. What it
                raises is raised here, and the write stays done.
            performed: The type of the write's result.
            voided: The answer when there was nothing to undo.

        Returns:
            What ``business`` returned the first time, or ``voided``.

        Raises:
            Conflict: The key stands for another trip or action, or was undone by another request.
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
                .values(state="undone", compensation_digest=digest)
            )
            operation = await self._winner(connection, action, request)
            if claim.rowcount == 1:
                outcome = await business(connection, performed.model_validate_json(operation.result))
                await connection.execute(self._row(request.key).values(compensation_result=outcome.model_dump_json()))
                return outcome
            if operation.compensation_digest != digest:
                raise Conflict(f"'{request.key}' was already undone by another request")
            return type(voided).model_validate_json(operation.compensation_result)

    async def _is_first(self, connection: AsyncConnection, action: str, request: Write | Undo, **fields: str) -> bool:
        """Write the row of a request's key, and tell if it is the first."""
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

    async def _winner(self, connection: AsyncConnection, action: str, request: Write | Undo) -> _Operation:
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
            raise Conflict(f"key: '{request.key}' stands for {self._service}/{operation.action}, not for {action}")
        return operation


def _digest(request: BaseModel) -> str:
    # Without defaults, so that a field added to a message later leaves the digests of running trips alone.
    content = request.model_dump(mode="json", exclude_defaults=True)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()

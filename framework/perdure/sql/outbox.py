"""Transactional outbox: start handlers in the transaction of a write.

A program that writes to its database and then calls the engine can crash in between. The outbox stores the request in
the transaction of the write; `perdure.sql.OutboxDispatcher` sends it to the engine until the engine has it. So a
handler is started if, and only if, the transaction commits. The pattern is the transactional outbox that Chris
Richardson describes in "Microservices Patterns".

The dispatcher repeats a request under the same key, and the engine starts one invocation per key for as long as it
retains the invocation: by default, a day after its end.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, overload
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)
from typing_extensions import TypeVar

from perdure._runtime.message_sizes import check_message
from perdure.clients import NO_REQUEST
from perdure.engine.ingress import request_body
from perdure.engine.ingress_requests import check_header
from perdure.idempotency import check_idempotency_key
from perdure.sql._connections import (
    AnyAsyncConnection,
    SyncConnection,
    changed_rows,
    check_text,
    in_utc,
    now,
    run_sync,
    transaction_of,
)
from perdure.targets import KeyedTarget, ServiceContext, Target, check_key, target_of

I = TypeVar("I")  # noqa: E741 - the SDK's name for the input


@dataclass(frozen=True)
class OutboxRow:
    """A request that the engine does not have yet.

    Args:
        id: The row's ID. Requests of one key are sent in the order of their IDs.
        service: The called service.
        handler: The called handler.
        key: The key of the virtual object or workflow; None for a service.
        idempotency_key: The idempotency key of a send; None for the start of a workflow.
        created_at: Time of the insertion.
        attempts: Number of failed attempts.
        next_attempt_at: Time of the next attempt; during an attempt, the time at which another dispatcher repeats it.
        dead_at: Time at which the engine refused the request for good; None if it is still sent.
        last_error: The error of the last attempt.
    """

    id: int
    service: str
    handler: str
    key: str | None
    idempotency_key: str | None
    created_at: datetime
    attempts: int
    next_attempt_at: datetime
    dead_at: datetime | None
    last_error: str | None


class Outbox:
    """Table of requests that a dispatcher sends to the engine.

    The table becomes part of the metadata, so migrations and ``metadata.create_all`` create it, see
    `perdure.sql.migrations`. The methods that end in ``_sync`` take synchronous connections and sessions.

    Args:
        metadata: The metadata of your tables.
        name: The name of the table.

    Example:
        outbox = Outbox(Base.metadata)

        async with sessions.begin() as session:
            session.add(Order(id=order.id, total=order.total))
            await outbox.start(session, process_order, order, key=order.id)
    """

    def __init__(self, metadata: MetaData, name: str = "perdure_outbox") -> None:
        self.table = Table(name, metadata, *columns())

    @property
    def channel(self) -> str:
        """The PostgreSQL channel that is notified of new rows."""
        return self.table.name

    @overload
    async def start(
        self,
        connection: AnyAsyncConnection,
        handler: KeyedTarget[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: str,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None: ...
    @overload
    async def start(
        self,
        connection: AnyAsyncConnection,
        handler: Callable[[Any], Awaitable[Any]],
        *,
        key: str,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None: ...
    async def start(
        self,
        connection: AnyAsyncConnection,
        handler: Any,
        request: Any = NO_REQUEST,
        *,
        key: str,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Start a workflow if the transaction commits.

        The engine starts a workflow once per key. If a workflow of the key exists, the request has no effect.

        Args:
            connection: A connection or session in a transaction, which the caller commits.
            handler: The workflow's main handler: its function or a target.
            request: The request.
            key: The workflow's key.
            delay: The durable delay of the start, from the dispatch on.
            headers: Headers for the handler.

        Raises:
            InvalidInput: The key or a header cannot be sent.
            TooLarge: The request exceeds the engine's message limit.
            ConfigurationError: The connection commits each statement, or its database is not supported.
        """
        row = _row(handler, request, key, delay=delay, headers=headers)
        await run_sync(connection, lambda sync: self._insert(sync, row))

    def start_sync(
        self,
        connection: SyncConnection,
        handler: KeyedTarget[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: str,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Start a workflow if the transaction of a synchronous connection or session commits. See `start`."""
        self._insert(connection, _row(handler, request, key, delay=delay, headers=headers))

    @overload
    async def send(
        self,
        connection: AnyAsyncConnection,
        handler: Target[I, Any] | Callable[[ServiceContext, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    @overload
    async def send(
        self,
        connection: AnyAsyncConnection,
        handler: KeyedTarget[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: str,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    @overload
    async def send(
        self,
        connection: AnyAsyncConnection,
        handler: Callable[[ServiceContext], Awaitable[Any]],
        *,
        key: None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    @overload
    async def send(
        self,
        connection: AnyAsyncConnection,
        handler: Callable[[Any], Awaitable[Any]],
        *,
        key: str,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str: ...
    async def send(
        self,
        connection: AnyAsyncConnection,
        handler: Any,
        request: Any = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Call a handler of a service or virtual object, without its response, if the transaction commits.

        Args:
            connection: A connection or session in a transaction, which the caller commits.
            handler: The handler's function or a target.
            request: The request.
            key: The key of a virtual object.
            idempotency_key: The key under which the engine starts one invocation; a new one by default.
            delay: The durable delay of the call, from the dispatch on.
            headers: Headers for the handler.

        Returns:
            The idempotency key, with which `perdure.engine.ingress.IngressClient.attach` finds the invocation.

        Raises:
            InvalidInput: A key or a header cannot be sent.
            TooLarge: The request exceeds the engine's message limit.
            ConfigurationError: The connection commits each statement, or its database is not supported.
        """
        unique = _idempotency_key(idempotency_key)
        row = _row(handler, request, key, idempotency_key=unique, delay=delay, headers=headers)
        await run_sync(connection, lambda sync: self._insert(sync, row))
        return unique

    def send_sync(
        self,
        connection: SyncConnection,
        handler: Target[I, Any, Any] | Callable[..., Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Call a handler if the transaction of a synchronous connection or session commits. See `send`."""
        unique = _idempotency_key(idempotency_key)
        row = _row(handler, request, key, idempotency_key=unique, delay=delay, headers=headers)
        self._insert(connection, row)
        return unique

    async def waiting(self, connection: AnyAsyncConnection, *, limit: int = 100) -> list[OutboxRow]:
        """Return the oldest requests that the engine does not have yet, dead ones included."""
        return await run_sync(connection, lambda sync: self._select(sync, limit, dead=None))

    async def dead(self, connection: AnyAsyncConnection, *, limit: int = 100) -> list[OutboxRow]:
        """Return the oldest requests that the engine refused for good. Later requests of their keys wait for them."""
        return await run_sync(connection, lambda sync: self._select(sync, limit, dead=True))

    async def retry(self, connection: AnyAsyncConnection, id_: int) -> bool:
        """Send a request again at once, and return whether it exists.

        Args:
            connection: A connection or session in a transaction.
            id_: The row's ID.
        """
        again = update(self.table).where(self.table.c.id == id_).values(dead_at=None, attempts=0, next_attempt_at=now())
        return await run_sync(connection, lambda sync: changed_rows(transaction_of(sync), again) == 1)

    async def discard(self, connection: AnyAsyncConnection, id_: int) -> bool:
        """Delete a dead request, and return whether it was there. Later requests of its key are sent then.

        Args:
            connection: A connection or session in a transaction.
            id_: The row's ID.
        """
        gone = delete(self.table).where(self.table.c.id == id_, self.table.c.dead_at.is_not(None))
        return await run_sync(connection, lambda sync: changed_rows(transaction_of(sync), gone) == 1)

    def _insert(self, connection: SyncConnection, row: Mapping[str, Any]) -> None:
        inner = transaction_of(connection)
        inner.execute(insert(self.table).values(**row))
        if inner.dialect.name == "postgresql":  # delivered at the commit
            inner.execute(select(func.pg_notify(self.channel, "")))

    def _select(self, connection: SyncConnection, limit: int, *, dead: bool | None) -> list[OutboxRow]:
        columns_ = [self.table.c[name] for name in OutboxRow.__dataclass_fields__]
        query = select(*columns_).order_by(self.table.c.id).limit(limit)
        if dead:
            query = query.where(self.table.c.dead_at.is_not(None))
        return [_read(row._mapping) for row in connection.execute(query)]  # noqa: SLF001 - SQLAlchemy's public name


def columns() -> list[Any]:
    """Return the columns and indexes of the table."""
    return [
        # SQLite generates IDs for INTEGER only.
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("service", Text, nullable=False),
        Column("handler", Text, nullable=False),
        Column("key", Text),
        Column("idempotency_key", Text),
        Column("body", Text),
        Column("headers", Text),
        Column("delay_ms", BigInteger),
        Column("created_at", DateTime(timezone=True), nullable=False),
        Column("next_attempt_at", DateTime(timezone=True), nullable=False, index=True),
        Column("attempts", Integer, nullable=False),
        Column("claimed_by", Text),
        Column("dead_at", DateTime(timezone=True)),
        Column("last_error", Text),
        Index(None, "service", "key", "id"),
    ]


def _row(
    handler: Target[Any, Any, Any] | Callable[..., Any],
    request: Any,
    key: str | None,
    *,
    idempotency_key: str | None = None,
    delay: timedelta | None,
    headers: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the values of a row, or refuse a request that the engine would refuse."""
    target = target_of(handler)
    key = check_key(target, key)
    body = request_body(target, request)
    check_message(f"the request of {target}", len(body or b""))
    for name, value in (headers or {}).items():
        check_header(value, f"header '{name}'")
    moment = now()
    return {
        "service": target.service,
        "handler": target.handler,
        "key": None if key is None else check_text("key", key),
        "idempotency_key": idempotency_key,
        "body": None if body is None else body.decode(),
        "headers": json.dumps(dict(headers)) if headers else None,
        "delay_ms": None if delay is None else max(0, round(delay.total_seconds() * 1000)),
        "created_at": moment,
        "next_attempt_at": moment,
        "attempts": 0,
    }


def _idempotency_key(given: str | None) -> str:
    if given is None:
        return str(uuid4())
    return check_header(check_text("idempotency key", check_idempotency_key(given)), "idempotency key")


def _read(row: Mapping[Any, Any]) -> OutboxRow:
    values: dict[str, Any] = {
        name: in_utc(value) if isinstance(value, datetime) else value for name, value in row.items()
    }
    return OutboxRow(**values)

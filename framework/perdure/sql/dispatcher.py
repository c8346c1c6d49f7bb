"""Dispatcher of an outbox: sends its requests to the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy import ColumnElement, delete, exists, select, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from perdure.engine.ingress import IngressClient
from perdure.errors import Acceptance, IngressError, PerdureError
from perdure.observability.logging import get_logger
from perdure.retry import RetryPolicy
from perdure.sql._connections import now
from perdure.sql.outbox import Outbox
from perdure.targets import KeyedTarget, Target

log = get_logger("perdure.sql")

_REFUSED: Final = frozenset({400, 405, 413, 415, 422})
"""Statuses with which the engine refuses the request itself, so that a repetition cannot help."""

_LONGEST_ERROR: Final = 2_000


class _Request(NamedTuple):
    """A claimed row."""

    id: int
    service: str
    handler: str
    key: str | None
    idempotency_key: str | None
    body: str | None
    headers: str | None
    delay_ms: int | None
    attempts: int

    @property
    def target(self) -> Target[Any, Any, Any]:
        return (Target if self.key is None else KeyedTarget)(self.service, self.handler, None, None)


class OutboxDispatcher:
    """Sends the requests of an outbox to the engine, until the engine has them.

    Run it in any number of processes: each request is claimed by one of them, and by another one if the first dies. A
    request whose response was lost is repeated under its key. Requests of one key are sent in the order of their rows;
    a dead request holds up the later ones of its key. On PostgreSQL with asyncpg, a new row wakes the dispatcher;
    otherwise it polls.

    Args:
        outbox: The outbox.
        engine: The database. The dispatcher uses up to two connections.
        ingress: A client of the engine's ingress.
        interval: The interval of polling.
        batch: The maximum number of requests that are sent at a time.
        lease: Time after which another dispatcher repeats a claimed request. Half of it limits the sending.
        retry: Backoff of failing requests; attempts and duration are not limited.

    Example:
        async with IngressClient(url) as ingress, OutboxDispatcher(outbox, engine, ingress).running():
            ...  # serve requests
    """

    def __init__(
        self,
        outbox: Outbox,
        engine: AsyncEngine,
        ingress: IngressClient,
        *,
        interval: timedelta = timedelta(seconds=1),
        batch: int = 50,
        lease: timedelta = timedelta(seconds=30),
        retry: RetryPolicy | None = None,
    ) -> None:
        self._table = outbox.table
        self._channel = outbox.channel
        self._engine = engine
        self._ingress = ingress
        self._interval = interval
        self._batch = batch
        self._lease = lease
        self._retry = retry or RetryPolicy(
            initial_interval=timedelta(milliseconds=200), max_interval=timedelta(seconds=30), max_attempts=None
        )
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Dispatch in the background for the duration of the block."""
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def run(self) -> None:
        """Dispatch until cancelled. Outages of the database and the engine are logged and waited out."""
        failures = 0
        async with AsyncExitStack() as stack:
            listener = _Listener(self._engine, self._channel, self._wake)
            stack.push_async_callback(listener.close)
            while True:
                self._wake.clear()
                try:
                    await listener.listen()
                    sent = await self.dispatch()
                except (SQLAlchemyError, OSError, IngressError) as error:
                    failures += 1
                    if failures == 1:
                        log.warning("outbox.interrupted", outbox=self._channel, error=_describe(error))
                except Exception:
                    failures += 1
                    log.exception("outbox.error", outbox=self._channel)
                else:
                    if failures:
                        log.info("outbox.continued", outbox=self._channel, failures=failures)
                    failures = 0
                    if sent:
                        continue
                pause = min(self._retry.delay_after(failures), timedelta(seconds=5)) if failures else self._interval
                await self._sleep(pause, wakeable=not failures)

    async def dispatch(self) -> int:
        """Claim and send one batch.

        Returns:
            The number of requests that were sent or refused.

        Raises:
            IngressError: The engine is unavailable. The claimed requests are released.
            sqlalchemy.exc.SQLAlchemyError: The database is unavailable.
        """
        token = uuid4().hex
        requests = await self._claim(token)
        results = await asyncio.gather(*(self._send(request) for request in requests))
        unavailable: PerdureError | None = None
        done = 0
        async with self._engine.begin() as connection:
            for request, error in sorted(zip(requests, results, strict=True), key=lambda pair: pair[0].id):
                mine = [self._table.c.id == request.id, self._table.c.claimed_by == token]
                if error is None:
                    await connection.execute(delete(self._table).where(*mine))
                    done += 1
                    continue
                values = self._failed(request, error)
                await connection.execute(update(self._table).where(*mine).values(claimed_by=None, **values))
                done += "dead_at" in values
                if _is_unavailable(error):
                    unavailable = error
        if unavailable is not None:
            raise unavailable
        return done

    async def _claim(self, token: str) -> Sequence[_Request]:
        table = self._table
        earlier = table.alias("earlier")
        blocked = exists().where(
            earlier.c.service == table.c.service, earlier.c.key == table.c.key, earlier.c.id < table.c.id
        )
        moment = now()
        due: list[ColumnElement[bool]] = [table.c.dead_at.is_(None), table.c.next_attempt_at <= moment, ~blocked]
        # Materialised, because PostgreSQL may evaluate a subquery with LIMIT several times.
        first = (
            select(table.c.id)
            .where(*due)
            .order_by(table.c.id)
            .limit(self._batch)
            .with_for_update(skip_locked=True)
            .cte("first")
        )
        claim = (
            update(table)
            .where(table.c.id.in_(select(first.c.id)))
            .values(claimed_by=token, next_attempt_at=moment + self._lease)
            .returning(*(table.c[name] for name in _Request._fields))
        )
        async with self._engine.begin() as connection:
            return [_Request._make(row) for row in await connection.execute(claim)]

    async def _send(self, request: _Request) -> PerdureError | None:
        """Send a request; return the error."""
        try:
            async with asyncio.timeout((self._lease / 2).total_seconds()):
                await self._ingress.send_json(
                    request.target,
                    request.body,
                    key=request.key,
                    idempotency_key=request.idempotency_key,
                    delay=None if request.delay_ms is None else timedelta(milliseconds=request.delay_ms),
                    headers=None if request.headers is None else json.loads(request.headers),
                )
        except TimeoutError:
            return IngressError(f"{request.target}: the ingress did not answer in {self._lease / 2}")
        except PerdureError as error:
            return error
        return None

    def _failed(self, request: _Request, error: PerdureError) -> dict[str, Any]:
        """Return the new values of a row whose attempt failed."""
        moment = now()
        values: dict[str, Any] = {"last_error": _describe(error)[:_LONGEST_ERROR]}
        if _is_unavailable(error):
            return values | {"next_attempt_at": moment}
        attempts = request.attempts + 1
        if isinstance(error, IngressError) and not _is_refused(error):
            return values | {"attempts": attempts, "next_attempt_at": moment + self._retry.delay_after(attempts)}
        log.error(
            "outbox.dead",
            outbox=self._channel,
            id=request.id,
            target=str(request.target),
            key=request.key,
            error=_describe(error),
            consequence="later requests of this key wait until the row is retried or discarded",
        )
        return values | {"attempts": attempts, "dead_at": moment}

    async def _sleep(self, duration: timedelta, *, wakeable: bool) -> None:
        if not wakeable:
            await asyncio.sleep(duration.total_seconds())
            return
        try:
            await asyncio.wait_for(self._wake.wait(), duration.total_seconds())
        except TimeoutError:
            return


class _Listener:
    """Listens for PostgreSQL notifications with a connection of its own; does nothing for other databases."""

    def __init__(self, engine: AsyncEngine, channel: str, wake: asyncio.Event) -> None:
        self._engine = engine
        self._channel = channel
        self._wake = wake
        self._connection: Any = None

    async def listen(self) -> None:
        """Listen, unless this is done or not possible.

        Raises:
            ConnectionError: The connection failed.
        """
        if self._engine.dialect.driver != "asyncpg" or (
            self._connection is not None and not self._driver_connection().is_closed()
        ):
            return
        await self.close()
        asyncpg = import_module("asyncpg")  # the driver of this engine
        try:
            self._connection = await self._engine.raw_connection()
            await self._driver_connection().add_listener(self._channel, self._notified)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, self._engine.dialect.loaded_dbapi.Error) as error:
            # SQLAlchemy wraps no errors of a raw connection.
            raise ConnectionError(f"cannot listen to {self._channel}: {error}") from error

    async def close(self) -> None:
        """Close the connection instead of returning it to the pool, where it would go on listening."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection = None

    def _driver_connection(self) -> Any:
        return self._connection.driver_connection

    def _notified(self, *_: object) -> None:
        self._wake.set()


def _is_refused(error: IngressError) -> bool:
    """Whether the engine itself refused the request for good. A proxy's response is no proof of that."""
    return error.acceptance is Acceptance.NOT_ACCEPTED and error.status_code in _REFUSED


def _is_unavailable(error: PerdureError) -> bool:
    """Whether the engine did not answer at all, so that every other request would fail, too."""
    return isinstance(error, IngressError) and error.status_code == 0


def _describe(error: Exception) -> str:
    if isinstance(error, DBAPIError) and error.orig is not None:
        return f"{type(error.orig).__name__}: {error.orig}"
    return str(error) or type(error).__name__

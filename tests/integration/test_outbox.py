"""Outbox and dispatcher with a real engine, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from perdure import IngressClient, KeyedTarget, Target, handler, run_with_retry
from perdure._runtime.ports import free_ports
from perdure.engine.admin import AdminClient
from perdure.errors import ConfigurationError, InvalidInput
from perdure.retry import RetryPolicy
from perdure.sql import OutboxDispatcher
from perdure.testing import Restate, RestateEnvironment
from tests.plugins.shop_database import ORDERS, OUTBOX
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("http2")

QUICKLY = RetryPolicy(initial_interval=timedelta(milliseconds=10), max_attempts=None)
ORDERS_PLACED = 240


def services(did: Recording) -> list[Any]:
    mail, ledger, fulfilments = sdk.Service("Mail"), sdk.VirtualObject("Ledger"), sdk.Workflow("Fulfilments")

    @handler(mail)
    async def post(ctx: sdk.Context, text: str) -> None:
        await run_with_retry(ctx, "note", did.add, f"{text}/{ctx.request().headers.get('x-from', '')}")

    @handler(ledger, "exclusive")
    async def write(ctx: sdk.ObjectContext, entry: int) -> None:
        await run_with_retry(ctx, "note", did.add, f"entry {ctx.key()}/{entry}")

    @handler(ledger, "exclusive", ingress_private=True)
    async def close(ctx: sdk.ObjectContext) -> None: ...

    @handler(fulfilments, "main")
    async def run(ctx: sdk.WorkflowContext, order: str) -> None:
        await run_with_retry(ctx, "note", did.add, f"fulfil {ctx.key()}/{order}")

    return [mail, ledger, fulfilments]


post = Target("Mail", "post", str, None)
write = KeyedTarget("Ledger", "write", int, None)
fulfil = KeyedTarget("Fulfilments", "run", str, None)


@pytest.fixture
async def environment(restate: Restate, did: Recording) -> RestateEnvironment:
    return await restate.serve(*services(did))


@pytest.fixture
async def ingress(environment: RestateEnvironment) -> AsyncIterator[IngressClient]:
    async with IngressClient(environment.ingress) as client:
        yield client


def dispatcher(engine: AsyncEngine, ingress: IngressClient, **options: Any) -> OutboxDispatcher:
    return OutboxDispatcher(OUTBOX, engine, ingress, retry=QUICKLY, **options)


async def waiting(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return len(await OUTBOX.waiting(connection, limit=1_000))


async def test_committed_rows_start_handlers_once(
    shop_engine: AsyncEngine, ingress: IngressClient, did: Recording
) -> None:
    key = str(uuid4())
    async with AsyncSession(shop_engine) as session, session.begin():
        await OUTBOX.start(session, fulfil, "books", key=key)
        await OUTBOX.start(session, fulfil, "books", key=key)
        await OUTBOX.send(session, post, key, headers={"x-from": "shop"})
        for _ in range(2):
            await OUTBOX.send(session, write, 1, key=key, idempotency_key=key)
    async with AsyncSession(shop_engine) as session:
        await OUTBOX.send(session, post, f"{key} never")
        await session.rollback()
    async with dispatcher(shop_engine, ingress).running():
        await eventually(lambda: len(did.of(key)) == 3 or None, what="fulfilment, mail and entry")
        await eventually(lambda: _is_empty(shop_engine), what="empty outbox")
    assert sorted(did.of(key)) == ["entry 1", "fulfil books", "shop"]


async def test_rows_of_a_key_are_sent_in_order(
    shop_engine: AsyncEngine, ingress: IngressClient, did: Recording
) -> None:
    key = str(uuid4())
    for entry in range(20):
        async with shop_engine.begin() as connection:
            await OUTBOX.send(connection, write, entry, key=key)
    dispatchers = [dispatcher(shop_engine, ingress, batch=3) for _ in range(3)]
    async with dispatchers[0].running(), dispatchers[1].running(), dispatchers[2].running():
        await eventually(lambda: len(did.of(key)) == 20 or None, what="all entries")
    assert did.of(key) == [f"entry {entry}" for entry in range(20)]


async def test_refused_row_blocks_its_key(shop_engine: AsyncEngine, ingress: IngressClient, did: Recording) -> None:
    key = str(uuid4())
    private = KeyedTarget("Ledger", "close", None, None)
    async with shop_engine.begin() as connection:
        await OUTBOX.send(connection, private, key=key)
        await OUTBOX.send(connection, write, 2, key=key)
        await OUTBOX.send(connection, write, 3, key=f"{key}-other")
    async with dispatcher(shop_engine, ingress).running():
        row = await eventually(lambda: _dead(shop_engine), what="dead row")
        await eventually(lambda: did.of(f"{key}-other") or None, what="entry of the other key")
        assert not did.of(key)
        assert row.last_error is not None
        assert "not public" in row.last_error
        async with shop_engine.begin() as connection:
            assert await OUTBOX.retry(connection, row.id)
        assert (await eventually(lambda: _dead(shop_engine), what="dead row")).id == row.id
        async with shop_engine.begin() as connection:
            assert await OUTBOX.discard(connection, row.id)
        assert await eventually(lambda: did.of(key) or None, what="later entry") == ["entry 2"]


async def test_unregistered_service_is_retried(restate: Restate, shop_engine: AsyncEngine, did: Recording) -> None:
    key = str(uuid4())
    async with shop_engine.begin() as connection:
        await OUTBOX.start(connection, fulfil, "books", key=key)
    async with (
        IngressClient(restate.server.ingress, max_attempts=1) as ingress,
        dispatcher(shop_engine, ingress).running(),
    ):
        row = await eventually(lambda: _failed(shop_engine), what="failed attempt")
        assert row.dead_at is None
        await restate.serve(*services(did))
        await eventually(lambda: did.of(key) or None, what="fulfilment")


async def test_outage_of_engine_is_waited_out(
    shop_engine: AsyncEngine, environment: RestateEnvironment, did: Recording
) -> None:
    key = str(uuid4())
    async with shop_engine.begin() as connection:
        await OUTBOX.send(connection, post, key)
    async with IngressClient(f"http://127.0.0.1:{free_ports(1)[0]}", max_attempts=1) as nowhere:
        with pytest.raises(Exception, match="no connection to the ingress"):
            await dispatcher(shop_engine, nowhere).dispatch()
    async with shop_engine.connect() as connection:
        (row,) = await OUTBOX.waiting(connection)
    assert (row.attempts, row.dead_at) == (0, None)
    async with IngressClient(environment.ingress) as ingress:
        assert await dispatcher(shop_engine, ingress).dispatch() == 1


async def test_row_of_a_dead_dispatcher_is_claimed_again(
    shop_engine: AsyncEngine, ingress: IngressClient, did: Recording
) -> None:
    key = str(uuid4())
    async with shop_engine.begin() as connection:
        await OUTBOX.send(connection, post, key)
    lost = dispatcher(shop_engine, ingress, lease=timedelta(seconds=1))
    assert len(await lost._claim("a token")) == 1
    assert await dispatcher(shop_engine, ingress).dispatch() == 0
    async with dispatcher(shop_engine, ingress).running():
        await eventually(lambda: did.of(key) or did.count(f"{key}/") or None, what="mail")


async def test_bad_requests_are_refused_before_they_are_stored(shop_engine: AsyncEngine) -> None:
    async with shop_engine.begin() as connection:
        with pytest.raises(InvalidInput, match="the key is missing"):
            await OUTBOX.send(connection, write, 1)  # type: ignore[call-overload]
        with pytest.raises(InvalidInput, match="NUL"):
            await OUTBOX.send(connection, write, 1, key="a\0b")
        with pytest.raises(InvalidInput, match="header 'x'"):
            await OUTBOX.send(connection, post, "text", headers={"x": "\n"})
        with pytest.raises(InvalidInput, match="idempotency key cannot be empty"):
            await OUTBOX.send(connection, post, "text", idempotency_key="")
    async with shop_engine.connect() as plain:
        autocommit = await plain.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            await OUTBOX.send(autocommit, post, "text")
    assert await waiting(shop_engine) == 0


async def test_killed_shops_start_committed_orders_only(
    shop_engine: AsyncEngine, shop_url: str, environment: RestateEnvironment, did: Recording
) -> None:
    prefix, randomness = uuid4().hex, random.Random(1)  # noqa: S311 - a seed
    command = [sys.executable, "-m", "tests.integration.outbox_process", shop_url, environment.ingress, prefix]
    root = Path(__file__).parents[2]
    kills = 0
    while True:
        process = await asyncio.create_subprocess_exec(*command, str(ORDERS_PLACED), cwd=root)
        before = len(did.all())
        goal = before + randomness.randint(30, 90)
        ended = asyncio.ensure_future(process.wait())
        await eventually(lambda goal=goal, ended=ended: len(did.all()) >= goal or ended.done(), what="progress")
        if ended.done():
            assert await ended == 0
            break
        process.kill()
        await ended
        kills += 1
    assert kills
    async with shop_engine.connect() as connection:
        orders = set((await connection.execute(select(ORDERS.c.id))).scalars())
    assert len(orders) == ORDERS_PLACED * 2 // 3
    await eventually(lambda: len(did.all()) >= len(orders), what="fulfilment of all orders")
    assert sorted(did.all()) == sorted(f"fulfil {order}/{order}" for order in orders)
    async with AdminClient(environment.admin) as admin:
        rows = await admin.query(
            f"select target_service_key from sys_invocation where target_service_key like '{prefix}%'"
        )
    assert {row["target_service_key"] for row in rows} == orders


async def _is_empty(engine: AsyncEngine) -> bool:
    return await waiting(engine) == 0


async def _dead(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        return next(iter(await OUTBOX.dead(connection)), None)


async def _failed(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        return next((row for row in await OUTBOX.waiting(connection) if row.attempts), None)

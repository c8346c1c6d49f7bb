"""A shop in a process that is killed: ``python -m tests.system.outbox.shop DATABASE INGRESS PREFIX COUNT``.

It places orders, of which every tenth rolls back, and dispatches the outbox of all shops. A transaction whose
connection breaks is not repeated, so it may be committed or not. A new process continues after the last committed
order.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

from sqlalchemy import func, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from perdure import IngressClient, KeyedTarget
from perdure.sql import OutboxDispatcher
from tests.plugins.shop_database import ORDERS, OUTBOX
from tests.support import eventually

fulfil = KeyedTarget("Fulfilments", "run", str, None)
"""Starts the fulfilment of an order."""

_CONCURRENT = 4
_WITHIN = 600.0
_OUTAGES = (SQLAlchemyError, OSError)


async def main(url: str, ingress_url: str, prefix: str, count: int) -> None:
    """Place orders until there are enough, and wait until the outbox is empty."""
    engine = create_async_engine(url, pool_pre_ping=True, connect_args={"timeout": 5, "command_timeout": 15})
    # Requests that a killed process has claimed are sent again soon.
    async with (
        IngressClient(ingress_url) as ingress,
        OutboxDispatcher(OUTBOX, engine, ingress, lease=timedelta(seconds=5)).running(),
    ):
        last = await eventually(lambda: _last(engine, prefix), what="answer of the database", within=_WITHIN)
        numbers = iter(range(int(last), count))
        await asyncio.gather(*(_place(engine, prefix, numbers) for _ in range(_CONCURRENT)))
        await eventually(lambda: _is_empty(engine), what="empty outbox", within=_WITHIN)
    await engine.dispose()


async def _place(engine: AsyncEngine, prefix: str, numbers: Iterator[int]) -> None:
    for number in numbers:  # shared by the tasks
        order = f"{prefix}-{number:06d}"
        try:
            async with engine.connect() as connection, connection.begin() as transaction:
                await connection.execute(insert(ORDERS).values(id=order))
                await OUTBOX.start(connection, fulfil, order, key=order)
                if number % 10 == 9:
                    await transaction.rollback()
        except _OUTAGES:
            await asyncio.sleep(0.05)  # the database is away; the next order may find it again


async def _last(engine: AsyncEngine, prefix: str) -> str | None:
    """Return the number of the next order as text; None while the database does not answer."""
    with suppress(*_OUTAGES):
        async with engine.connect() as connection:
            query = select(func.max(ORDERS.c.id)).where(ORDERS.c.id.like(f"{prefix}-%"))
            found = (await connection.execute(query)).scalar_one()
        return str(int(found.rpartition("-")[2]) + 1) if found else "0"
    return None


async def _is_empty(engine: AsyncEngine) -> bool:
    with suppress(*_OUTAGES):
        async with engine.connect() as connection:
            return not await OUTBOX.waiting(connection, limit=1)
    return False


if __name__ == "__main__":
    database, ingress_, prefix_, count_ = sys.argv[1:]
    asyncio.run(main(database, ingress_, prefix_, int(count_)))

"""A shop in a process that tests kill: ``python outbox_process.py DATABASE INGRESS PREFIX COUNT``.

It places orders, of which every third rolls back, and dispatches the outbox. It continues after the last order.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from perdure import IngressClient, KeyedTarget
from perdure.sql import OutboxDispatcher
from tests.plugins.shop_database import ORDERS, OUTBOX
from tests.support import eventually

fulfil = KeyedTarget("Fulfilments", "run", str, None)


async def main(url: str, ingress_url: str, prefix: str, count: int) -> None:
    engine = create_async_engine(url, connect_args={"timeout": 30})
    async with IngressClient(ingress_url) as ingress, _dispatcher(engine, ingress).running():
        await place_orders(engine, prefix, count)
        await eventually(lambda: _is_empty(engine), what="empty outbox")
    await engine.dispose()


def _dispatcher(engine: AsyncEngine, ingress: IngressClient) -> OutboxDispatcher:
    # Requests that a killed process has claimed are sent again soon.
    return OutboxDispatcher(OUTBOX, engine, ingress, batch=10, lease=timedelta(seconds=2))


async def place_orders(engine: AsyncEngine, prefix: str, count: int) -> None:
    async with engine.connect() as connection:
        placed = (await connection.execute(select(func.count()).select_from(ORDERS))).scalar_one()
    for number in range(placed * 3 // 2, count):
        async with engine.connect() as connection, connection.begin() as transaction:
            order = f"{prefix}-{number:06d}"
            await connection.execute(insert(ORDERS).values(id=order))
            await OUTBOX.start(connection, fulfil, order, key=order)
            if number % 3 == 2:
                await transaction.rollback()


async def _is_empty(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return not (await OUTBOX.waiting(connection, limit=1))


if __name__ == "__main__":
    database, ingress_, prefix_, count_ = sys.argv[1:]
    asyncio.run(main(database, ingress_, prefix_, int(count_)))

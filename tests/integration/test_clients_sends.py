"""Sends from inside handlers: delayed, deduplicated, cancelled."""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import uuid4

import restate as sdk

from perdure import IngressClient, ServiceClient, WorkflowClient
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import TerminalError
from tests.integration.callees import Order, callees, calling, done, note, wait_flow
from tests.support import Recording, eventually


async def noted(did: Recording, key: str) -> float:
    async def seen() -> str | None:
        entries = did.of(key)
        return entries[0] if entries else None

    return float((await eventually(seen, what="note")).removeprefix("note "))


async def test_send_returns_at_once_and_delays(restate, did):
    delay = timedelta(milliseconds=400)

    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, note)
        await client.send(Order(key=f"{key}-now"))
        await client.send(Order(key=f"{key}-none"), delay=timedelta(0))
        await client.send(Order(key=f"{key}-past"), delay=timedelta(seconds=-5))
        sent = await client.send(Order(key=f"{key}-later"), delay=delay)
        return [key, await sent.invocation_id()]

    start = time.time()
    service, go = calling(work)
    env = await restate.serve(service, *callees(did))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key, later = await ingress.call(go, str(uuid4()))
        assert time.time() - start < delay.total_seconds() + 5
        rows = await admin.query(f"select target from sys_invocation where id = {sql_text(later)}")
        assert [row["target"] for row in rows] == ["Callees/note"]
        for when in ("now", "none", "past"):
            await noted(did, f"{key}-{when}")
        assert await noted(did, f"{key}-later") - start >= delay.total_seconds() * 0.9


async def test_same_idempotency_key_starts_one_invocation(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        client = ServiceClient(ctx, note)
        sent = [await client.send(Order(key=key), idempotency_key=f"note:{key}") for _ in range(2)]
        return [key, *[await item.invocation_id() for item in sent]]

    service, go = calling(work)
    env = await restate.serve(service, *callees(did))
    async with IngressClient(env.ingress) as ingress:
        key, one, two = await ingress.call(go, str(uuid4()))
        assert one == two
        await noted(did, key)
        # Another invocation repeats the send; the call after both shows that only one invocation started.
        again, three, _ = await ingress.call(go, key)
        assert (again, three) == (key, one)
        assert len(did.of(key)) == 1


async def test_cancel_call_by_future(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        call = WorkflowClient(ctx, wait_flow, key).call_async(Order(key=key))
        await call.cancel()
        try:
            return [await call]
        except TerminalError as error:
            return [error.status_code, error.message]

    assert await done(restate, did, work) == ["409", "cancelled"]


async def test_cancel_send_before_and_after_start(restate, did):
    async def work(ctx: sdk.Context, key: str) -> list[object]:
        sent = await ServiceClient(ctx, note).send(Order(key=key), delay=timedelta(hours=1))
        await sent.cancel()
        try:
            await ctx.attach_invocation(await sent.invocation_id())
        except TerminalError as error:
            return [key, error.status_code, error.message]
        return []

    key, *ended = await done(restate, did, work)
    # The delayed invocation disappears without a result; otherwise this would wait for an hour.
    assert ended in (["409", "cancelled"], ["404", "not found"])
    assert did.of(key) == []

"""Deadlines of sagas: they interrupt every wait, decide races once, and leave sagas past the pivot alone."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from perdure import KeyedTarget, Orchestration, get_internal_signal, map_concurrent
from perdure.alerts.service import ALERTS_KEY, AlertList, Alerts, list_alerts, scan_target
from perdure.engine.admin import AdminClient
from perdure.errors import Cancelled, DeadlineExceeded, IngressError
from perdure.saga.messages import RollbackStatus
from perdure.saga.status import RollbackState
from tests.integration.saga_bench import Bench, Task, do_task, run_step, step, truth, undo_of
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("all")

LONG = timedelta(minutes=10)


async def in_call(cp: Orchestration) -> None:
    await run_step(cp, "b", hangs=True)


async def in_group(cp: Orchestration) -> None:
    await cp.parallel(step(cp, "b", hangs=True), step(cp, "c"))


async def in_local_action(cp: Orchestration) -> None:
    async def forever(_: Task) -> None:
        await asyncio.Event().wait()

    task = Task(key=cp.key, name="b")
    await cp.step("b", forever, task, compensate=undo_of(cp, task))


async def in_sleep(cp: Orchestration) -> None:
    await cp.sleep(LONG)


async def in_raw_wait(cp: Orchestration) -> None:
    await cp.ctx.sleep(LONG)


async def in_promise(cp: Orchestration) -> None:
    await get_internal_signal(cp.ctx, "never", str).result()


async def in_concurrent_waits(cp: Orchestration) -> None:
    async def wait(_ctx: Any, _item: int) -> None:
        await cp.ctx.sleep(LONG)

    await map_concurrent(cp.ctx, [1, 2], wait)


async def caught(cp: Orchestration) -> None:
    with contextlib.suppress(Cancelled):
        await cp.ctx.sleep(LONG)


WAITS = {
    each.__name__: each
    for each in (in_call, in_group, in_local_action, in_sleep, in_raw_wait, in_promise, in_concurrent_waits, caught)
}


async def run(bench: Bench, kind: str) -> tuple[str, str]:
    """Start an orchestration; return its key, which begins with the kind, and its invocation."""
    key = f"{kind}.{uuid4().hex[:8]}"
    return key, await bench.ingress.send(KeyedTarget(bench.name, "run", None, object), key=key)


async def result(bench: Bench, key: str) -> Any:
    return await bench.ingress.attach(KeyedTarget(bench.name, "run", None, object), key=key)


async def failure(bench: Bench, key: str) -> IngressError:
    with pytest.raises(IngressError) as failed:
        await result(bench, key)
    return failed.value


async def rolled_back(bench: Bench, key: str) -> RollbackStatus:
    async def probe() -> RollbackStatus | None:
        try:
            status = await bench.rollback(key)
        except IngressError as error:
            if error.status_code != 404:
                raise
            return None
        return status if status.status is RollbackState.ROLLED_BACK else None

    return await eventually(probe, what=f"rollback of {key}")


async def test_deadline_interrupts_every_wait(bench, did):
    bench.deadline = timedelta(seconds=2)

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await WAITS[cp.key.partition(".")[0]](cp)

    await bench.serve(main)
    started = {kind: await run(bench, kind) for kind in WAITS}
    await eventually(truth(lambda: did.count(f"undo {started['in_sleep'][0]}/a") == 1), what="rollback")
    bench.released.set()
    for kind, (key, _) in started.items():
        error = await failure(bench, key)
        assert (error.status_code, error.code) == (408, DeadlineExceeded.code), (kind, error)
        assert error.metadata["rollback"] == "rolled_back", kind
        undone = bench.undone(key)
        assert undone[-1] == "undo a", kind
        assert len(set(undone)) == len(undone), kind
        assert (await bench.rollback(key)).earlier == [], kind


async def test_deadline_past_pivot_raises_alert(bench, did, restate_servers, restate_mode):
    bench.deadline = timedelta(seconds=1)

    async def main(cp: Orchestration) -> str:
        await run_step(cp, "a")
        cp.pivot()
        return await cp.step("b", do_task, Task(key=cp.key, name="b", hangs=True))

    await bench.serve(main, *Alerts(restate_servers.for_mode(restate_mode).admin).definitions())
    key, invocation = await run(bench, "pivot")

    async def alerts() -> AlertList:
        await bench.ingress.call(scan_target, key=ALERTS_KEY)
        return await bench.ingress.call(list_alerts, key=ALERTS_KEY)

    async def raised() -> bool:
        return f"overdue/{invocation}" in {alert.id for alert in (await alerts()).open}

    async def resolved() -> bool:
        return f"overdue/{invocation}" in {alert.id for alert in (await alerts()).resolved}

    await eventually(raised, what="alert about the overdue saga")
    bench.released.set()
    assert await result(bench, key) == "B"
    assert bench.undone(key) == []
    await eventually(resolved, what="end of the alert")


async def test_race_with_completing_step_is_decided_once(bench, did):
    bench.deadline = timedelta(milliseconds=400)

    async def main(cp: Orchestration) -> str:
        await run_step(cp, "a")
        await cp.sleep(timedelta(milliseconds=int(cp.key.partition(".")[0])))
        return await run_step(cp, "b")

    await bench.serve(main)
    sagas = [await run(bench, str(delay)) for delay in range(300, 420, 8)]
    for key, _ in sagas:
        try:
            assert await result(bench, key) == "B", key
        except IngressError as error:
            status = error.status_code
        else:
            assert bench.undone(key) == [], key
            continue
        assert status == 408, key
        await rolled_back(bench, key)
        assert bench.undone(key).count("undo a") == 1, key


async def test_cancel_at_deadline_rolls_back_once(bench, did):
    bench.deadline = timedelta(milliseconds=600)

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.step("b", stuck, Task(key=cp.key, name="b"), compensate=undo_of(cp, Task(key=cp.key, name="b")))

    async def stuck(task: Task) -> None:
        await asyncio.to_thread(bench.released.wait, 30)

    await bench.serve(main)
    sagas = []
    async with AdminClient(bench.admin_url) as admin:
        for delay in (0.3, 0.55, 0.6, 0.65, 0.8):
            sagas.append(await run(bench, "cancel"))
            await asyncio.sleep(delay)  # the race under test: a cancel around the deadline
            await admin.control_if_permitted(sagas[-1][1], "cancel")
    bench.released.set()
    for key, _ in sagas:
        assert (await failure(bench, key)).status_code in (408, 409), key
        assert (await rolled_back(bench, key)).earlier == [], key
        assert [bench.undone(key).count(f"undo {name}") for name in "ab"] == [1, 1], key

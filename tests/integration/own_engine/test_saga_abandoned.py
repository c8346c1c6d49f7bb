"""Sagas of killed or paused orchestrations, whose calls may still run and must end before the rollback."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from perdure import DataPlaneContext, DataPlaneService, Orchestration, SagaConfig, ServiceClient, Target
from perdure.engine.admin import AdminClient, sql_text
from perdure.saga.reconciler import SagaReconciler, reconcile_target
from tests.integration.exhausted_sagas import (
    MOMENT,
    config_of,
    did_it,
    exhausted,
    found,
    held_up,
    nothing,
    rollback_of,
    rolled_back,
    run_of,
    status_of,
)
from tests.integration.saga_bench import QUICK, Task, do_task, run_step, undo_of
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")


class Bug:
    """Fails every attempt of an orchestration once it is enabled."""

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin
        self._enabled = False

    def check(self) -> None:
        if self._enabled:
            raise RuntimeError("a permanent bug")

    async def enable(self, invocation: str) -> None:
        self._enabled = True

        async def tried_again() -> bool:
            rows = await self._admin.query(f"select status from sys_invocation where id = {sql_text(invocation)}")
            waits = rows[0]["status"] in ("paused", "suspended")
            await self._admin.control_invocation(invocation, "resume" if waits else "pause")
            return waits

        await eventually(tried_again, what=f"another attempt of {invocation}")


async def child_invocation(admin: AdminClient, name: str) -> str:
    (row,) = await admin.query(
        f"select id from sys_invocation_status where target_service_name = {sql_text(name)} "
        "and target_handler_name = 'run'"
    )
    return row["id"]


async def test_rollback_awaits_running_child(bench, did, admin, engine):
    async def hang(task: Task) -> None:
        did.add(f"do {task.key}/{task.name}")
        assert await asyncio.to_thread(bench.released.wait, 30)
        did.add(f"done {task.key}/{task.name}")

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c1")
        task = Task(key=cp.key, name="slow")
        await cp.step("slow", hang, task, compensate=undo_of(cp, task))
        await run_step(cp, "c2")

    child_name, name, key, bug = f"Child{uuid4().hex[:8]}", f"Parent{uuid4().hex[:8]}", str(uuid4()), Bug(admin)

    async def main(cp: Orchestration) -> None:
        bug.check()
        await run_step(cp, "a")
        await cp.child("package", run_of(child_name), None, key=f"{cp.key}-child")

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    config = config_of(engine)
    await bench.serve(nothing, exhausted(name, main), nested, SagaReconciler(config))
    invocation = await bench.ingress.send(run_of(name), None, key=key)
    await did_it(did, f"do {key}-child/slow")
    await bug.enable(invocation)
    assert (await status_of(admin, invocation, "completed"))["completion_result"] == "failure"
    await found(admin, config, invocation)
    try:
        why = await held_up(bench, invocation)
        assert why.startswith(f"its calls still run, and were cancelled: {child_name}/{key}-child/run (")
        assert (await held_up(bench, invocation)) == why
        assert bench.undone(f"{key}-child") == []
    finally:
        bench.released.set()
    await rolled_back(bench, f"{name}:{key}")
    assert did.of(f"{key}-child") == ["do c1", "done c1", "do slow", "done slow", "undo slow", "undo c1"]
    assert bench.undone(key) == ["undo a"]


async def test_rollback_awaits_running_call(bench, did, admin, engine):
    name, key, bug = f"Solo{uuid4().hex[:8]}", str(uuid4()), Bug(admin)

    async def main(cp: Orchestration) -> None:
        bug.check()
        await run_step(cp, "slow", hangs=True)

    config = config_of(engine)
    await bench.serve(nothing, exhausted(name, main), SagaReconciler(config))
    invocation = await bench.ingress.send(run_of(name), None, key=key)
    await did_it(did, f"do {key}/slow")
    await bug.enable(invocation)
    await status_of(admin, invocation, "completed")
    await found(admin, config, invocation)
    try:
        assert "Tasks/do" in await held_up(bench, invocation)
    finally:
        bench.released.set()
    await rolled_back(bench, f"{name}:{key}")
    assert did.of(key) == ["do slow", "done slow", "undo slow"]


async def test_rollback_does_not_await_sent_invocation(bench, did, admin, engine):
    name, key, bug = f"Solo{uuid4().hex[:8]}", str(uuid4()), Bug(admin)

    async def main(cp: Orchestration) -> None:
        await ServiceClient(cp.ctx, do_task).send(Task(key=cp.key, name="sent", hangs=True))
        await run_step(cp, "a")
        bug.check()
        _, never = cp.ctx.awakeable()
        await never

    config = config_of(engine)
    await bench.serve(nothing, exhausted(name, main), SagaReconciler(config))
    invocation = await bench.ingress.send(run_of(name), None, key=key)
    await did_it(did, f"do {key}/sent")
    await bug.enable(invocation)
    await status_of(admin, invocation, "completed")
    await found(admin, config, invocation)
    try:
        report = await bench.ingress.call(reconcile_target, key="all")
        assert invocation in {find.id for find in report.acted_on}
        await rolled_back(bench, f"{name}:{key}", reconcile=False)
    finally:
        bench.released.set()
    await did_it(did, f"done {key}/sent")


async def test_rollback_without_journal_awaits_all_invocations(bench, did, admin, engine):
    name, key, bug = f"Solo{uuid4().hex[:8]}", str(uuid4()), Bug(admin)

    async def main(cp: Orchestration) -> None:
        await ServiceClient(cp.ctx, do_task).send(Task(key=cp.key, name="sent", hangs=True))
        bug.check()
        await run_step(cp, "slow", hangs=True)

    config = config_of(engine)
    solo = exhausted(name, main, journal_retention=timedelta(0))
    await bench.serve(nothing, solo, SagaReconciler(config))
    invocation = await bench.ingress.send(run_of(name), None, key=key)
    await did_it(did, f"do {key}/sent")
    await did_it(did, f"do {key}/slow")
    await bug.enable(invocation)
    await status_of(admin, invocation, "completed")
    await found(admin, config, invocation)
    try:
        why = await held_up(bench, invocation)
        assert why.startswith("its calls or what it sent still run: Tasks/do (")
        assert why.count("Tasks/do") == 2
    finally:
        bench.released.set()
    await rolled_back(bench, f"{name}:{key}")
    assert (did.count(f"done {key}/sent"), did.count(f"done {key}/slow")) == (1, 1)
    assert did.of(key)[-1] == "undo slow"


async def test_rollback_awaits_calls_of_killed_child(bench, did, admin, engine):
    parent_bug, child_bug = Bug(admin), Bug(admin)
    child_name, name, key = f"Child{uuid4().hex[:8]}", f"Parent{uuid4().hex[:8]}", str(uuid4())

    async def child(cp: Orchestration) -> None:
        child_bug.check()
        await run_step(cp, "slow", hangs=True)

    async def main(cp: Orchestration) -> None:
        parent_bug.check()
        await cp.child("package", run_of(child_name), None, key=f"{cp.key}-child")

    config = config_of(engine)
    await bench.serve(nothing, exhausted(name, main), exhausted(child_name, child), SagaReconciler(config))
    invocation = await bench.ingress.send(run_of(name), None, key=key)
    await did_it(did, f"do {key}-child/slow")
    await parent_bug.enable(invocation)
    await status_of(admin, invocation, "completed")
    child_id = await child_invocation(admin, child_name)
    await child_bug.enable(child_id)
    await status_of(admin, child_id, "completed")
    await found(admin, config, invocation)
    await found(admin, config, child_id)
    try:
        assert "Tasks/do" in await held_up(bench, invocation)
        assert "Tasks/do" in await held_up(bench, child_id)
    finally:
        bench.released.set()
    await rolled_back(bench, f"{name}:{key}")
    await rolled_back(bench, f"{child_name}:{key}-child")
    assert did.of(f"{key}-child") == ["do slow", "done slow", "undo slow"]


async def test_killed_paused_orchestration_gets_grace_period(bench, did, admin, engine):
    bakery = DataPlaneService("Bakery")

    def bake(task: Task) -> str:
        did.add(f"do {task.key}/{task.name}")
        assert bench.released.wait(30)
        did.add(f"done {task.key}/{task.name}")
        return "bread"

    @bakery.handler("bake")
    async def _bake(ctx: DataPlaneContext, task: Task) -> str:
        return await ctx.run("bake", bake, task)  # in a thread, which a kill does not end

    name, key, bug = f"Solo{uuid4().hex[:8]}", str(uuid4()), Bug(admin)

    async def main(cp: Orchestration) -> None:
        bug.check()
        task = Task(key=cp.key, name="slow")
        await cp.step("slow", Target("Bakery", "bake", Task, str), task, compensate=undo_of(cp, task))

    config = config_of(engine, grace=timedelta(seconds=1), paused_limit=MOMENT)
    await bench.serve(nothing, bakery, exhausted(name, main, "pause"), SagaReconciler(config))
    invocation = await bench.ingress.send(run_of(name), None, key=key)
    await did_it(did, f"do {key}/slow")
    await bug.enable(invocation)
    await status_of(admin, invocation, "paused")
    await found(admin, config, invocation, "paused")
    try:
        report = await bench.ingress.call(reconcile_target, key="all")
        assert invocation in {find.id for find in report.acted_on}
        assert await rollback_of(bench, f"{name}:{key}") is None
    finally:
        bench.released.set()
    ended = await status_of(admin, invocation, "completed")
    rollback = await rolled_back(bench, f"{name}:{key}")
    assert rollback.started_at - datetime.fromisoformat(ended["completed_at"]) >= config.grace
    assert rollback.reason == "the orchestration was orphaned: paused for longer than 0:00:00.001000 and killed"
    assert did.of(key) == ["do slow", "done slow", "undo slow"]

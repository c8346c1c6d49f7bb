"""Kills of executions with reused keys, of children, and of rollbacks before they are recorded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import cast
from uuid import uuid4

import httpx
import pytest
import restate as sdk

from perdure import ControlPlaneService, Orchestration, SagaConfig, Target
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError
from perdure.observability.metrics import OPEN_SAGAS
from perdure.retry import RetryPolicy
from perdure.saga import external_rollback, recovery, submission
from perdure.saga.gauges import sample_sagas
from perdure.saga.messages import rollback_status
from perdure.saga.reconciler import ReconcileReport, SagaReconciler, SagaReconcilerConfig
from perdure.saga.schema import RollbackRequest
from perdure.saga.status import RollbackState
from tests.integration.saga_bench import QUICK, Bench, Task, forget_runs, run_step, truth
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("all")

reconcile_target = Target("SagaReconciler", "reconcile", None, ReconcileReport)


@pytest.fixture
def reconciler(restate):
    return SagaReconciler(
        SagaReconcilerConfig(
            admin_url=restate.server.admin, ingress_url=restate.server.ingress, grace=timedelta(milliseconds=1)
        )
    )


@pytest.fixture
async def admin(restate) -> AsyncIterator[AdminClient]:
    async with AdminClient(restate.server.admin) as admin:
        yield admin


def run_of(service: str) -> Target[None, object]:
    return Target(service, "run", None, object)


async def start(bench: Bench, service: str, key: str) -> str:
    return await bench.ingress.send(run_of(service), None, key=key)


async def did_all(bench: Bench, *entries: str) -> None:
    await eventually(truth(lambda: all(bench.did.count(each) for each in entries)), what=" and ".join(entries))


async def rolled_back(bench: Bench, saga: str) -> None:
    async def probe() -> bool:
        try:
            return (await bench.ingress.call(rollback_status, key=saga)).status is RollbackState.ROLLED_BACK
        except IngressError as error:
            if error.status_code != 404:
                raise
            return False

    await eventually(probe, what=f"end of the rollback of {saga}")


def is_key(column: str, key: str) -> str:
    """Return the condition that a column has a key, or the ID of an execution of the saga with this ID."""
    return f"({column} = {sql_text(key)} or {column} like {sql_text(key + '@%')})"


async def only_open(admin: AdminClient, service: str, handler: str, key: str) -> str:
    """Return the ID of the only open invocation of a handler."""

    async def probe() -> str | None:
        rows = await admin.query(
            f"select id from sys_invocation_status where target_service_name = {sql_text(service)} "
            f"and target_handler_name = {sql_text(handler)} and {is_key('target_service_key', key)} "
            "and status != 'completed'"
        )
        return rows[0]["id"] if rows else None

    return await eventually(probe, what=f"{service}/{key}/{handler}")


async def on_record(admin: AdminClient, service: str, key: str) -> None:
    async def probe() -> bool:
        sql = f"select 1 from state where service_name = {sql_text(service)} and service_key = {sql_text(key)}"
        return bool(await admin.query(sql))

    await eventually(probe, what="recorded step")


class Brake:
    """A compensation that blocks until it is released."""

    def __init__(self, did: Recording, service: ControlPlaneService) -> None:
        self._did = did
        self._released = threading.Event()
        service.compensation("undo_slowly")(self._undo)

    async def _undo(self, ctx: sdk.Context, task: Task) -> None:
        async def undo() -> None:
            self._did.add(f"compensating {task.key}/{task.name}")
            assert await asyncio.to_thread(self._released.wait, 30)
            self._did.add(f"undo {task.key}/{task.name}")

        await ctx.run_typed("undo", undo)

    def release(self) -> None:
        self._released.set()

    def block(self) -> None:
        self._released.clear()


async def rollback_state(admin: AdminClient, saga: str) -> dict[str, list[int]]:
    """Return the state of a saga's rollbacks."""
    rows = await admin.query(
        "select key, encode(value, 'hex') as value from state "
        f"where service_name = 'ExecutionRollbacks' and {is_key('service_key', saga)}"
    )
    return {row["key"]: list(bytes.fromhex(row["value"])) for row in rows}


async def lose_rollback(admin: AdminClient, admin_url: str, saga: str) -> None:
    """Kill the running rollback of a saga and delete its state, as if the kill had preceded the first write."""
    invocation = await only_open(admin, "ExecutionRollbacks", "run", saga)
    rows = await admin.query(
        f"select target_service_key as key from sys_invocation_status where id = {sql_text(invocation)}"
    )
    await admin.control_invocation(invocation, "kill")
    await delete_rollback(admin_url, rows[0]["key"])


async def delete_rollback(admin_url: str, execution: str) -> None:
    """Delete the state of a rollback, as if a kill had preceded its first write."""
    body = {"object_key": execution, "new_state": {}}
    async with httpx.AsyncClient() as http:
        response = await http.post(f"{admin_url}/services/ExecutionRollbacks/state", json=body)
    assert response.is_success, response.text


async def count_orphaned(admin: AdminClient, service: str) -> int:
    """Return how many orphaned sagas of a service the gauge collector counts."""
    samples = await sample_sagas(admin)
    labels = {"service": service, "phase": "orphaned"}
    return int(sum(number or 0 for metric, number, its in samples if metric is OPEN_SAGAS and its == labels))


async def test_killed_execution_with_reused_key_is_rolled_back(bench, did, admin, reconciler):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        _, never = cp.ctx.awakeable()
        await never

    await bench.serve(main, reconciler)
    key = str(uuid4())
    for number in (1, 2):
        invocation = await start(bench, bench.name, key)
        await eventually(
            truth(lambda number=number: did.count(f"done {key}/a") == number), what=f"step of execution {number}"
        )
        await admin.control_invocation(invocation, "kill")

        async def counted() -> bool:
            return await count_orphaned(admin, bench.name) == 1

        await eventually(counted, what=f"orphaned execution {number}")

        async def undone(number: int = number) -> bool:
            await bench.ingress.call(reconcile_target, key="all")
            return did.count(f"undo {key}/a") == number

        await eventually(undone, what=f"compensation of execution {number}")
        await bench.ingress.call(reconcile_target, key="all")
        await rolled_back(bench, f"{bench.name}:{key}")
        assert await count_orphaned(admin, bench.name) == 0
        await forget_runs(admin, key)
    assert bench.undone(key) == ["undo a"] * 2


async def test_lost_rollback_of_reused_key_is_restarted(bench, did, admin, reconciler):
    async def alone(cp: Orchestration) -> None:
        cp.add_compensation_step("undo_slowly", Task(key=cp.key, name="a"))
        _, never = cp.ctx.awakeable()
        await never

    async def main(cp: Orchestration) -> None:
        """Do nothing."""

    name, key = f"Alone{uuid4().hex[:8]}", str(uuid4())
    service = bench.orchestration(name, alone, SagaConfig(**QUICK))
    brake = Brake(did, service)
    await bench.serve(main, service, reconciler)

    async def cancel_execution() -> None:
        invocation = await start(bench, name, key)
        await on_record(admin, name, key)
        await admin.control_invocation(invocation, "cancel")

    brake.release()
    await cancel_execution()
    await rolled_back(bench, f"{name}:{key}")
    await forget_runs(admin, key)
    brake.block()
    await cancel_execution()
    await eventually(
        truth(lambda: did.count(f"compensating {key}/a") == 2), what="compensation of the second execution"
    )
    await lose_rollback(admin, bench.admin_url, f"{name}:{key}")
    brake.release()
    assert await count_orphaned(admin, name) == 1

    async def is_resubmitted() -> bool:
        await bench.ingress.call(reconcile_target, key="all")
        return len((await bench.ingress.call(rollback_status, key=f"{name}:{key}")).executions) == 2

    await eventually(is_resubmitted, what="second execution in the rollback")
    await rolled_back(bench, f"{name}:{key}")
    assert await count_orphaned(admin, name) == 0
    assert did.count(f"undo {key}/a") == 2


async def test_reused_child_key_follows_each_parent(bench, did, admin):
    child_name, child_key = f"Child{uuid4().hex[:8]}", str(uuid4())

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c")

    async def main(cp: Orchestration) -> None:
        await cp.child("package", run_of(child_name), None, key=child_key)
        await run_step(cp, "b", fails=-1)

    await bench.serve(main, bench.orchestration(child_name, child, SagaConfig(**QUICK)))
    for number in (1, 2):
        with pytest.raises(IngressError) as failed:
            await bench.ingress.call(run_of(bench.name), key=f"{child_key}-parent-{number}")
        assert failed.value.metadata["rollback_undone"] == "b,package"
        assert did.count(f"undo {child_key}/c") == number
        await forget_runs(admin, child_key)


async def test_parent_resubmits_lost_rollback_of_child(bench, did, admin, monkeypatch):
    monkeypatch.setattr(submission, "OUTCOME_POLLS", RetryPolicy(timedelta(milliseconds=100), max_attempts=None))
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> None:
        cp.add_compensation_step("undo_slowly", Task(key=cp.key, name="c"))

    async def main(cp: Orchestration) -> None:
        await cp.child("package", run_of(child_name), None, key=f"{cp.key}-child")
        await run_step(cp, "b", fails=-1)

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    brake = Brake(did, nested)
    await bench.serve(main, nested)
    key = str(uuid4())
    await start(bench, bench.name, key)
    await did_all(bench, f"compensating {key}-child/c")
    await lose_rollback(admin, bench.admin_url, f"{child_name}:{key}-child")
    brake.release()
    await rolled_back(bench, f"{bench.name}:{key}")
    assert did.all().count(f"undo {key}-child/c") == 1


async def test_orchestration_resubmits_its_lost_rollback(bench, did, admin, monkeypatch):
    monkeypatch.setattr(submission, "OUTCOME_POLLS", RetryPolicy(timedelta(milliseconds=100), max_attempts=None))
    name = f"Alone{uuid4().hex[:8]}"

    async def alone(cp: Orchestration) -> None:
        cp.add_compensation_step("undo_slowly", Task(key=cp.key, name="a"))
        await run_step(cp, "b", fails=-1)

    async def main(cp: Orchestration) -> None:
        """Do nothing."""

    service = bench.orchestration(name, alone, SagaConfig(**QUICK))
    brake = Brake(did, service)
    await bench.serve(main, service)
    key = str(uuid4())
    call = asyncio.create_task(bench.ingress.call(run_of(name), key=key))
    await did_all(bench, f"compensating {key}/a")
    await lose_rollback(admin, bench.admin_url, f"{name}:{key}")
    brake.release()
    with pytest.raises(IngressError) as failed:
        await call
    assert failed.value.metadata["rollback_undone"] == "b,undo_slowly"
    assert (did.count(f"undo {key}/b"), did.count(f"undo {key}/a")) == (1, 1)


async def kill_waiting_child(bench: Bench, admin: AdminClient, *, parent: bool, reconciler: SagaReconciler) -> str:
    """Kill a child without recorded steps, or its parent with it; return the parent's key."""
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> None:
        _, never = cp.ctx.awakeable()
        await never

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", run_of(child_name), None, key=f"{cp.key}-child")

    await bench.serve(main, bench.orchestration(child_name, child, SagaConfig(**QUICK)), reconciler, max_attempts=1)
    key = str(uuid4())
    invocation = await start(bench, bench.name, key)
    waiting = await only_open(admin, child_name, "run", f"{key}-child")
    await admin.control_invocation(invocation if parent else waiting, "kill")

    async def killed() -> bool:
        rows = await admin.query(f"select status from sys_invocation_status where id = {sql_text(waiting)}")
        return rows[0]["status"] == "completed"

    await eventually(killed, what="end of the child")
    return key


async def test_child_killed_before_first_step_needs_no_rollback(bench, admin, reconciler):
    key = await kill_waiting_child(bench, admin, parent=False, reconciler=reconciler)
    await rolled_back(bench, f"{bench.name}:{key}")
    assert bench.undone(key) == ["undo a"]


async def test_child_killed_with_parent_needs_no_rollback(bench, admin, reconciler):
    key = await kill_waiting_child(bench, admin, parent=True, reconciler=reconciler)
    await bench.ingress.call(reconcile_target, key="all")
    await rolled_back(bench, f"{bench.name}:{key}")
    assert bench.undone(key) == ["undo a"]


async def test_orphaned_saga_is_resubmitted_after_kill(bench, did, admin, reconciler, monkeypatch):
    monkeypatch.setattr(submission, "RECORD_POLLS", RetryPolicy(timedelta(seconds=1), max_attempts=None))
    monkeypatch.setattr(recovery, "ANSWER_TIMEOUT", timedelta(seconds=30))

    async def alone(cp: Orchestration) -> None:
        cp.add_compensation_step("undo_slowly", Task(key=cp.key, name="a"))
        _, never = cp.ctx.awakeable()
        await never

    async def main(cp: Orchestration) -> None:
        """Do nothing."""

    name = f"Alone{uuid4().hex[:8]}"
    service = bench.orchestration(name, alone, SagaConfig(**QUICK))
    brake = Brake(did, service)
    await bench.serve(main, service, reconciler)
    key = str(uuid4())
    invocation = await start(bench, name, key)
    await on_record(admin, name, key)
    await admin.control_invocation(invocation, "kill")
    scan = asyncio.create_task(bench.ingress.call(reconcile_target, key="all"))
    await did_all(bench, f"compensating {key}/a")
    await lose_rollback(admin, bench.admin_url, f"{name}:{key}")
    brake.release()
    await rolled_back(bench, f"{name}:{key}")
    assert invocation in {find.id for find in (await scan).acted_on}
    assert did.count(f"undo {key}/a") == 1


async def test_killed_roll_back_handler_is_repeated(bench, did, admin, reconciler, monkeypatch):
    async def sleep(ctx: sdk.WorkflowSharedContext, _: RollbackRequest) -> None:
        """Submit nothing."""
        await cast("sdk.Context", ctx).sleep(timedelta(minutes=1))

    monkeypatch.setattr(external_rollback, "submit_and_confirm", sleep)
    monkeypatch.setattr(recovery, "ANSWER_TIMEOUT", timedelta(milliseconds=200))

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        _, never = cp.ctx.awakeable()
        await never

    await bench.serve(main, reconciler)
    key = str(uuid4())
    invocation = await start(bench, bench.name, key)
    await did_all(bench, f"done {key}/a")
    await admin.control_invocation(invocation, "kill")
    await bench.ingress.call(reconcile_target, key="all")
    await admin.control_invocation(await only_open(admin, bench.name, "roll_back", key), "kill")
    monkeypatch.undo()

    async def is_repaired() -> bool:
        report = await bench.ingress.call(reconcile_target, key="all")
        return invocation in {find.id for find in report.acted_on}

    await eventually(is_repaired, what="scan that repairs the saga")
    await rolled_back(bench, f"{bench.name}:{key}")
    assert bench.undone(key) == ["undo a"]

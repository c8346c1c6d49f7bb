"""Sagas in sagas: a child's rollback is one compensation of its parent."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from perdure import AdminClient, Orchestration, SagaConfig, Target
from perdure.errors import IngressError
from perdure.saga.messages import ActionReceipt, DeadLetterActionRequest
from perdure.saga.status import CompensationState, RollbackState
from tests.integration.saga_bench import QUICK, Task, do_task, forget_runs, run_step, truth
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("all")


async def test_a_finished_child_is_undone_by_its_own_rollback(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> str:
        await run_step(cp, "c1")
        await run_step(cp, "c2")
        return "child"

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", type(None), object), None, key=f"{cp.key}-child")
        await run_step(cp, "b", fails=-1)

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    key, error = await bench.run(main, nested)
    assert error.metadata["rollback_undone"] == "b,package,a"
    undone = [entry for entry in did.all() if entry.startswith("undo")]
    assert undone == [f"undo {key}/b", f"undo {key}-child/c2", f"undo {key}-child/c1", f"undo {key}/a"]


async def test_a_child_that_failed_has_rolled_itself_back_and_is_not_undone_twice(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c1")
        await run_step(cp, "c2", fails=-1)

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", type(None), object), None, key=f"{cp.key}-child")

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    key, error = await bench.run(main, nested)
    assert error.message == "step 'package' failed: step 'c2' failed: c2 is out of order"
    undone = [entry for entry in did.all() if entry.startswith("undo")]
    assert undone == [f"undo {key}-child/c2", f"undo {key}-child/c1", f"undo {key}/a"]


async def test_a_cancel_of_the_parent_while_a_child_runs_undoes_both_once(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c1")
        await cp.step("slow", do_task, Task(key=cp.key, name="slow", hangs=True), compensate="undo")

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", type(None), object), None, key=f"{cp.key}-child")

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    ingress = await bench.serve(main, nested)
    key = str(uuid4())
    invocation = await ingress.send(Target(bench.name, "run", type(None), object), key=key)
    await eventually(truth(lambda: did.count(f"do {key}-child/slow") == 1), what="slow step of the child")
    async with AdminClient(bench.admin_url) as admin:
        await admin.act(invocation, "cancel")
    bench.released.set()

    async def both_undone() -> bool:
        try:
            return (await bench.rollback(key)).status is RollbackState.ROLLED_BACK
        except IngressError as error:
            if error.status_code != 404:
                raise
            return False

    await eventually(both_undone, what="rollback of the parent")
    undone = [entry for entry in did.all() if entry.startswith("undo")]
    assert undone == [f"undo {key}-child/slow", f"undo {key}-child/c1", f"undo {key}/a"]


async def test_a_parent_does_not_undo_a_child_that_another_parent_started(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> str:
        await run_step(cp, "c")
        return "child"

    async def main(cp: Orchestration) -> None:
        key, _, is_second = cp.key.partition("/")
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", type(None), object), None, key=f"{key}-child")
        assert not is_second

    ingress = await bench.serve(main, bench.orchestration(child_name, child, SagaConfig(**QUICK)))
    key = str(uuid4())
    run = Target(bench.name, "run", type(None), object)
    await ingress.call(run, key=key)
    with pytest.raises(IngressError) as failed:
        await ingress.call(run, key=f"{key}/second")
    text = f"the key '{key}-child' of {child_name} belongs to another run, which is left as it is"
    assert failed.value.message.startswith(f"step 'package' failed: {text}")
    assert [entry for entry in did.all() if entry.startswith("undo")] == [f"undo {key}/second/a"]


async def test_a_child_that_does_not_end_in_time_is_not_undone_from_a_part_of_its_record(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def hang(task: Task) -> None:
        did.add(f"do {task.key}/{task.name}")
        assert await asyncio.to_thread(bench.released.wait, 30)

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c1")
        await cp.step("slow", hang, Task(key=cp.key, name="slow"), compensate="undo")

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", type(None), object), None, key=f"{cp.key}-child")

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    ingress = await bench.serve(main, nested, settle_timeout=timedelta(milliseconds=100), max_attempts=2)
    key = str(uuid4())
    invocation = await ingress.send(Target(bench.name, "run", type(None), object), key=key)
    await eventually(truth(lambda: did.count(f"do {key}-child/slow") == 1), what="slow step of the child")
    async with AdminClient(bench.admin_url) as admin:
        await admin.act(invocation, "cancel")

    async def dead() -> str | None:
        try:
            steps = (await bench.rollback(key)).steps
        except IngressError as error:
            if error.status_code != 404:
                raise
            return None
        return next((step.error for step in steps if step.state is CompensationState.DEAD_LETTER), None)

    async def dead_no_more() -> bool:
        return (await bench.rollback(key)).status is RollbackState.ROLLED_BACK

    try:
        error = await eventually(dead, what="dead letter of the child")
        assert error.startswith(f"the child '{key}-child' of step 'package' still runs, 0:00:00.100000 after")
        assert bench.undone(f"{key}-child") == []
    finally:
        bench.released.set()
    await eventually(truth(lambda: len(bench.undone(f"{key}-child")) == 2), what="rollback of the child itself")
    letter = DeadLetterActionRequest(id=f"{bench.name}:{key}/2", actor="olga@example.com")
    await ingress.call(Target("DeadLetters", "redrive", DeadLetterActionRequest, ActionReceipt), letter)
    await eventually(dead_no_more, what="end of the rollback")
    assert bench.undone(f"{key}-child") == ["undo slow", "undo c1"]
    assert bench.undone(key) == ["undo a"]


async def test_a_childs_run_of_another_parent_is_not_undone_in_place_of_ones_own(bench, did):
    child_name, key = f"Child{uuid4().hex[:8]}", str(uuid4())

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c")

    async def main(cp: Orchestration) -> None:
        await cp.child("package", Target(child_name, "run", type(None), object), None, key=key)
        if cp.key.endswith("first"):
            await run_step(cp, "b", hangs=True, fails=-1)

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    ingress = await bench.serve(main, nested, max_attempts=1)
    run = Target(bench.name, "run", type(None), object)
    await ingress.send(run, key=f"{key}-first")
    await eventually(truth(lambda: did.count(f"do {key}-first/b") == 1), what="second step of the first parent")
    async with AdminClient(bench.admin_url) as admin:
        await forget_runs(admin, key)
    await ingress.call(run, key=f"{key}-second")
    bench.released.set()

    async def dead() -> str | None:
        try:
            status = await bench.rollback(f"{key}-first")
        except IngressError as error:
            if error.status_code != 404:
                raise
            return None
        return status.steps[0].error if status.status is RollbackState.NEEDS_ATTENTION else None

    error = await eventually(dead, what="dead letter of the child")
    assert f"was started by the saga '{bench.name}:{key}-second', so '{bench.name}:{key}-first' must not" in error
    assert did.count(f"undo {key}/c") == 0

"""Child sagas: a child's rollback is one compensation of its parent."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from perdure import Orchestration, SagaConfig, Target
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError
from perdure.saga.messages import ActionReceipt, DeadLetterActionRequest
from perdure.saga.status import CompensationState, RollbackState
from tests.integration.saga_bench import QUICK, Task, forget_runs, run_step, truth, undo_of
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("all")


async def test_completed_child_rolls_itself_back(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> str:
        await run_step(cp, "c1")
        await run_step(cp, "c2")
        return "child"

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", None, object), None, key=f"{cp.key}-child")
        await run_step(cp, "b", fails=-1)

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    key, error = await bench.run(main, nested)
    assert error.metadata["rollback_undone"] == "b,package,a"
    undone = [entry for entry in did.all() if entry.startswith("undo")]
    assert undone == [f"undo {key}/b", f"undo {key}-child/c2", f"undo {key}-child/c1", f"undo {key}/a"]


async def test_failed_child_is_rolled_back_once(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c1")
        await run_step(cp, "c2", fails=-1)

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", None, object), None, key=f"{cp.key}-child")

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    key, error = await bench.run(main, nested)
    assert error.message == "step 'package' failed: step 'c2' failed: c2 is out of order"
    undone = [entry for entry in did.all() if entry.startswith("undo")]
    assert undone == [f"undo {key}-child/c2", f"undo {key}-child/c1", f"undo {key}/a"]


async def test_parent_cancel_rolls_back_running_child_once(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c1")
        await run_step(cp, "slow", hangs=True)

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", None, object), None, key=f"{cp.key}-child")

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    ingress = await bench.serve(main, nested)
    key = str(uuid4())
    invocation = await ingress.send(Target(bench.name, "run", None, object), key=key)
    await eventually(truth(lambda: did.count(f"do {key}-child/slow") == 1), what="slow step of the child")
    async with AdminClient(bench.admin_url) as admin:
        await admin.control_invocation(invocation, "cancel")
    bench.released.set()

    async def is_rolled_back() -> bool:
        try:
            return (await bench.rollback(key)).status is RollbackState.ROLLED_BACK
        except IngressError as error:
            if error.status_code != 404:
                raise
            return False

    await eventually(is_rolled_back, what="rollback of the parent")
    undone = [entry for entry in did.all() if entry.startswith("undo")]
    assert undone == [f"undo {key}-child/slow", f"undo {key}-child/c1", f"undo {key}/a"]


async def test_child_of_other_parent_is_not_rolled_back(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> str:
        await run_step(cp, "c")
        return "child"

    async def main(cp: Orchestration) -> None:
        key, _, is_second = cp.key.partition("/")
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", None, object), None, key=f"{key}-child")
        assert not is_second

    ingress = await bench.serve(main, bench.orchestration(child_name, child, SagaConfig(**QUICK)))
    key = str(uuid4())
    run = Target(bench.name, "run", None, object)
    await ingress.call(run, key=key)
    with pytest.raises(IngressError) as failed:
        await ingress.call(run, key=f"{key}/second")
    text = f"the key '{key}-child' of {child_name} belongs to another execution, which is not rolled back"
    assert failed.value.message.startswith(f"step 'package' failed: {text}")
    assert [entry for entry in did.all() if entry.startswith("undo")] == [f"undo {key}/second/a"]


async def test_child_that_outlives_settle_timeout_becomes_dead_letter(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def hang(task: Task) -> None:
        did.add(f"do {task.key}/{task.name}")
        assert await asyncio.to_thread(bench.released.wait, 30)

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c1")
        task = Task(key=cp.key, name="slow")
        await cp.step("slow", hang, task, compensate=undo_of(cp, task))

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", None, object), None, key=f"{cp.key}-child")

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    ingress = await bench.serve(main, nested, settle_timeout=timedelta(milliseconds=100), max_attempts=2)
    key = str(uuid4())
    invocation = await ingress.send(Target(bench.name, "run", None, object), key=key)
    await eventually(truth(lambda: did.count(f"do {key}-child/slow") == 1), what="slow step of the child")
    async with AdminClient(bench.admin_url) as admin:
        await admin.control_invocation(invocation, "cancel")

    async def dead_letter() -> str | None:
        try:
            steps = (await bench.rollback(key)).steps
        except IngressError as error:
            if error.status_code != 404:
                raise
            return None
        return next((step.error for step in steps if step.state is CompensationState.DEAD_LETTER), None)

    async def is_rolled_back() -> bool:
        return (await bench.rollback(key)).status is RollbackState.ROLLED_BACK

    try:
        error = await eventually(dead_letter, what="dead letter of the child")
        assert error.startswith(f"the child '{key}-child' of step 'package' still runs, 0:00:00.100000 after")
        assert bench.undone(f"{key}-child") == []
    finally:
        bench.released.set()
    await eventually(truth(lambda: len(bench.undone(f"{key}-child")) == 2), what="rollback of the child itself")
    letter = DeadLetterActionRequest(id=f"{bench.name}:{key}/2", actor="olga@example.com")
    await ingress.call(Target("DeadLetters", "redrive", DeadLetterActionRequest, ActionReceipt), letter)
    await eventually(is_rolled_back, what="end of the rollback")
    assert bench.undone(f"{key}-child") == ["undo slow", "undo c1"]
    assert bench.undone(key) == ["undo a"]


async def test_child_with_reused_key_is_not_rolled_back(bench, did):
    child_name, key = f"Child{uuid4().hex[:8]}", str(uuid4())

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c")

    async def main(cp: Orchestration) -> None:
        await cp.child("package", Target(child_name, "run", None, object), None, key=key)
        if cp.key.endswith("first"):
            await run_step(cp, "b", hangs=True, fails=-1)

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    ingress = await bench.serve(main, nested, max_attempts=1)
    run = Target(bench.name, "run", None, object)
    await ingress.send(run, key=f"{key}-first")
    await eventually(truth(lambda: did.count(f"do {key}-first/b") == 1), what="second step of the first parent")
    async with AdminClient(bench.admin_url) as admin:
        await forget_runs(admin, key)
    await ingress.call(run, key=f"{key}-second")
    bench.released.set()

    async def dead_letter() -> str | None:
        try:
            status = await bench.rollback(f"{key}-first")
        except IngressError as error:
            if error.status_code != 404:
                raise
            return None
        return status.steps[0].error if status.status is RollbackState.NEEDS_ATTENTION else None

    error = await eventually(dead_letter, what="dead letter of the child")
    assert f"was started by the saga '{bench.name}:{key}-second', so '{bench.name}:{key}-first' must not roll" in error
    assert did.count(f"undo {key}/c") == 0

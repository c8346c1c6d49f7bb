"""Sagas in adverse cases: reused keys, wrapped and swallowed cancels, late redrives, unusual names."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    CompensationStrategy,
    ControlPlaneService,
    Orchestration,
    SagaConfig,
    ServiceClient,
    StatusData,
    Target,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import Cancelled, IngressError, InvalidInput, Refused, TerminalError
from perdure.saga.messages import ActionReceipt, DeadLetterActionRequest, RollbackStatus
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig, reconcile_target
from perdure.saga.status import RollbackState
from perdure.serving import build_app
from perdure.testing import Mode, ServedApp
from tests.integration.saga_bench import QUICK, Bench, Task, do_task, run_step, undo_of, undo_task
from tests.integration.test_saga_cancel import attempts
from tests.support import PATIENCE, eventually


async def start(bench: Bench, key: str, name: str = "") -> str:
    return await bench.ingress.send(Target(name or bench.name, "run", None, object), None, key=key)


async def status(bench: Bench, key: str) -> StatusData:
    return await bench.ingress.call(Target(bench.name, "status", None, StatusData), key=key)


async def act(bench: Bench, what: str, letter: str, **more: Any) -> ActionReceipt:
    target = Target("DeadLetters", what, DeadLetterActionRequest, ActionReceipt)
    return await bench.ingress.call(target, DeadLetterActionRequest(id=letter, actor="olga", **more))


async def entry(bench: Bench, text: str) -> None:
    async def there() -> bool:
        return bench.did.count(text) > 0

    await eventually(there, what=text)


async def cancel_while_slow(bench: Bench, key: str) -> None:
    """Start a saga, cancel it while its step 'slow' runs, and let the step end."""
    invocation = await start(bench, key)
    await entry(bench, f"do {key}/slow")
    async with AdminClient(bench.admin_url) as admin:
        await admin.control_invocation(invocation, "cancel")
    bench.released.set()


async def rolled_back(bench: Bench, key: str, outcome: RollbackState = RollbackState.ROLLED_BACK) -> RollbackStatus:
    async def probe() -> RollbackStatus | None:
        try:
            found = await bench.rollback(key)
        except IngressError as error:
            if error.status_code == 404:
                return None
            raise
        return found if found.status is outcome else None

    return await eventually(probe, what=f"rollback of {key} that is {outcome}")


async def test_reused_key_is_rolled_back_again(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await run_step(cp, "b", fails=-1)

    key, _ = await bench.run(main)
    assert bench.undone(key) == ["undo b", "undo a"]
    async with AdminClient(bench.admin_url) as admin:
        rows = await admin.query("select id from sys_invocation where target_service_key = " + sql_text(key))
        for row in rows:
            await admin.control_invocation(row["id"], "purge")
    with pytest.raises(IngressError) as failed:
        await bench.ingress.call(Target(bench.name, "run", None, object), key=key)
    assert "step 'b' failed" in failed.value.message
    assert bench.undone(key) == ["undo b", "undo a"] * 2


@pytest.mark.parametrize("local", [False, True], ids=["call", "run"])
async def test_compensate_step_that_completes_after_cancel(bench, did, local):
    async def main(cp: Orchestration) -> None:
        async def here(name: str) -> None:
            did.add(f"do {cp.key}/{name}")
            assert await asyncio.to_thread(bench.released.wait, 30)
            did.add(f"done {cp.key}/{name}")

        task = Task(key=cp.key, name="slow", hangs=True)
        if local:
            await cp.step("slow", here, "slow", compensate=undo_of(cp, task))
        else:
            await cp.step("slow", do_task, task, compensate=undo_of(cp, task))

    await bench.serve(main, strategy=CompensationStrategy.COMPLETED)
    key = str(uuid4())
    await cancel_while_slow(bench, key)
    await rolled_back(bench, key)
    assert did.of(key) == ["do slow", "done slow", "undo slow"]


async def test_wrapped_cancel_is_still_cancel(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a", undo_fails=2)
        try:
            await run_step(cp, "slow", hangs=True)
        except TerminalError as error:
            raise Refused("the shop is closed", 410) from error

    await bench.serve(main, initial_delay=timedelta(seconds=1), max_delay=timedelta(seconds=1))
    key = str(uuid4())
    before = attempts(bench.name)
    await cancel_while_slow(bench, key)
    await rolled_back(bench, key)
    assert bench.undone(key) == ["undo slow", "undo a", "undo a", "undo a"]
    assert (await status(bench, key)).phase == "cancelled"
    assert attempts(bench.name) - before < 25


async def test_swallowed_cancel_rolls_back(bench, did):
    async def main(cp: Orchestration) -> str:
        await run_step(cp, "a")
        try:
            await run_step(cp, "slow", hangs=True)
        except TerminalError:
            await run_step(cp, "instead")
        return "booked"

    await bench.serve(main)
    key = str(uuid4())
    await cancel_while_slow(bench, key)
    await rolled_back(bench, key)
    assert (await status(bench, key)).phase == "cancelled"
    assert did.of(key) == ["do a", "done a", "do slow", "done slow", "undo slow", "undo a"]


async def test_child_without_steps_leaves_no_dead_letter(bench, did):
    child_name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> None:
        raise InvalidInput("invalid input: no")

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", None, object), None)

    nested = bench.orchestration(child_name, child, SagaConfig(**QUICK))
    key, error = await bench.run(main, nested)
    assert error.message == "step 'package' failed: invalid input: no"
    assert bench.undone(key) == ["undo a"]
    assert error.metadata["rollback"] == "rolled_back"


async def test_redrive_ignores_until_success_limit(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await run_step(cp, "b", undo_fails=1)
        raise Refused("enough", 410)

    key, error = await bench.run(main, strategy=CompensationStrategy.UNTIL_SUCCESS, max_attempts=1)
    assert bench.undone(key) == ["undo b", "undo a"]
    assert error.metadata["rollback"] == "needs_attention"
    await act(bench, "redrive", f"{bench.name}:{key}/2")
    found = await rolled_back(bench, key)
    assert {each.step: each.state for each in found.steps} == {"a": "undone", "b": "undone"}
    assert bench.undone(key) == ["undo b", "undo a", "undo b"]


@pytest.mark.parametrize("letter", ["unknown/" + "9" * 5000, "x" * 100_000 + "/1", "//1", "/", "a/-1", "a/²"])
async def test_reject_malformed_dead_letter_id(bench, did, letter):
    async def main(cp: Orchestration) -> None:
        """Do nothing."""

    await bench.serve(main)
    with pytest.raises(IngressError) as refused:
        await asyncio.wait_for(act(bench, "redrive", letter), PATIENCE)
    assert refused.value.status_code in (400, 404)


async def test_unusual_names_survive_rollback_and_redrive(bench, did):
    async def main(cp: Orchestration) -> None:
        task = Task(key=cp.key, name="a", undo_fails=1)
        await cp.step("ä/b:c 💥\n" + "n" * 100, do_task, task, compensate=undo_of(cp, task))
        await run_step(cp, "b", fails=-1)

    await bench.serve(main, max_attempts=1)
    key = ("ü/7:%2F💥 ?#" + str(uuid4())).ljust(128, "/")
    with pytest.raises(IngressError) as failed:
        await bench.ingress.call(Target(bench.name, "run", None, object), key=key)
    assert failed.value.metadata["rollback"] == "needs_attention"
    await act(bench, "redrive", f"{bench.name}:{key}/1")
    await rolled_back(bench, key)


async def test_redrive_does_not_await_purged_action(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "slow", hangs=True, undo_fails=2)

    await bench.serve(main, settle_timeout=timedelta(minutes=10), max_attempts=2)
    key = str(uuid4())
    await cancel_while_slow(bench, key)
    await rolled_back(bench, key, RollbackState.NEEDS_ATTENTION)
    async with AdminClient(bench.admin_url) as admin:
        rows = await admin.query(
            "select id from sys_invocation where status = 'completed' and target_service_name = 'Tasks'"
        )
        for row in rows:
            await admin.control_invocation(row["id"], "purge")
    await act(bench, "redrive", f"{bench.name}:{key}/1")
    await rolled_back(bench, key)
    assert bench.undone(key) == ["undo slow"] * 3


async def test_services_sharing_saga_id_both_roll_back(bench, did):
    other_name = f"Other{uuid4().hex[:8]}"

    def service(name: str, tag: str) -> ControlPlaneService:
        jobs = ControlPlaneService(name, saga=SagaConfig(**QUICK), saga_prefix="")

        @jobs.compensation()
        async def undo(ctx: sdk.Context, task: Task) -> None:
            await ServiceClient(ctx, undo_task).call(task)

        @jobs.main()
        async def run(cp: Orchestration) -> None:
            await run_step(cp, tag)
            raise Cancelled("like a cancel") if tag == "y" else Refused("no", 410)

        return jobs

    async def main(cp: Orchestration) -> None:
        """Do nothing."""

    await bench.serve(main, service(other_name, "x"), service(other_name + "b", "y"))
    key = str(uuid4())
    for name in (other_name, other_name + "b"):
        with pytest.raises(IngressError):
            await bench.ingress.call(Target(name, "run", None, object), key=key)

    async def both() -> bool:
        return sorted(bench.undone(key)) == ["undo x", "undo y"]

    await eventually(both, what="both undone")


@pytest.mark.parametrize("act_name", ["discard", "skip"])
async def test_final_notification_requires_all_compensations(bench, did, act_name):
    async def main(cp: Orchestration) -> None:
        cp.add_compensation_step("undo", Task(key=cp.key, name="final"), step="final", after_others=True)
        await run_step(cp, "a", undo_fails=-1)
        raise Refused("enough", 410)

    key, _ = await bench.run(main, max_attempts=1)
    await act(bench, act_name, f"{bench.name}:{key}/2")
    await rolled_back(bench, key)
    assert bench.undone(key) == ["undo a"]


async def test_operator_action_during_long_rollback(bench, did):
    steps = 60

    async def main(cp: Orchestration) -> None:
        for number in range(steps):
            cp.add_compensation_step("undo", Task(key=cp.key, name=f"{number}", undo_fails=-(number == steps - 1)))
        raise Refused("enough", 410)

    await bench.serve(main, max_attempts=1)
    key = str(uuid4())
    await start(bench, key)
    await entry(bench, f"undo {key}/{steps - 2}")
    receipt = await act(bench, "annotate", f"{bench.name}:{key}/{steps}", reason="seen")
    assert receipt.number == 1
    assert len(bench.undone(key)) < steps  # before the end of the rollback
    await rolled_back(bench, key, RollbackState.NEEDS_ATTENTION)
    assert len(bench.undone(key)) == steps


@pytest.fixture
async def reconciler(restate):
    config = SagaReconcilerConfig(
        admin_url=restate.server.admin, ingress_url=restate.server.ingress, grace=timedelta(milliseconds=1)
    )
    return SagaReconciler(config)


async def test_unresponsive_service_blocks_no_other_saga(restate, bench, did, reconciler):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        _, never = cp.ctx.awakeable()
        await never

    down = f"Down{uuid4().hex[:8]}"
    gone = ServedApp(
        build_app(*bench.orchestration(down, main, SagaConfig(**QUICK)).definitions()),
        http="1" if restate.mode is Mode.REQUEST_RESPONSE else "2",
    )
    await bench.serve(main, reconciler)
    async with AdminClient(bench.admin_url) as admin:
        with gone:
            await admin.register(gone.url, use_http_11=restate.mode is Mode.REQUEST_RESPONSE)
            keys = {name: str(uuid4()) for name in (down, bench.name)}
            for name, key in keys.items():
                invocation = await start(bench, key, name)
                await entry(bench, f"done {key}/a")
                await admin.control_invocation(invocation, "kill")
        report = await asyncio.wait_for(bench.ingress.call(reconcile_target, key="all"), 30)
        assert keys[bench.name] in {find.key for find in report.acted_on}
        assert any(down in message for message in report.failed.values())
        await rolled_back(bench, keys[bench.name])
        left = await admin.query(
            f"select id from sys_invocation where status != 'completed' and target_service_name = {sql_text(down)}"
        )
        for row in left:
            await admin.control_invocation(row["id"], "kill")
        ended = await admin.query(
            "select id from sys_invocation where target_handler_name = 'run' "
            f"and target_service_name = {sql_text(down)}"
        )
        for row in ended:  # or each later scan would retry it
            await admin.control_invocation(row["id"], "purge")
        for deployment in await admin.deployments():
            if str(deployment.get("uri", "")).rstrip("/") == gone.url:
                await admin.remove_deployment(deployment["id"])


async def test_resumed_orchestration_is_not_killed(bench, did, reconciler):
    async def main(cp: Orchestration) -> str:
        await run_step(cp, "a")
        return "booked"

    await bench.serve(main, reconciler)
    key = str(uuid4())
    invocation = await start(bench, key)
    await entry(bench, f"done {key}/a")

    async def completed() -> bool:
        return (await status(bench, key)).is_complete

    await eventually(completed, what="end")
    assert not await reconciler._kill_paused(invocation)

"""Kills at critical moments: after a resume, during admission, between dispatch and result."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import Orchestration, SagaConfig
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, Refused
from perdure.handlers import handler
from perdure.retry import RetryPolicy
from perdure.saga import hosting, rollback, schema, submission
from perdure.saga.config import CompensationStrategy
from perdure.saga.dispatch import RollbackDispatcher, StartCompensation
from perdure.saga.messages import (
    ActionReceipt,
    DeadLetterActionRequest,
    DeadLetterListRequest,
    DeadLetterPage,
    rollback_status,
)
from perdure.saga.reconciler import ReconcileReport, SagaReconciler, SagaReconcilerConfig, find_orphans
from perdure.saga.schema import StepProgress, saga_of
from perdure.saga.status import CompensationState, RollbackState
from perdure.targets import Target
from perdure.testing import RestateServer
from tests.integration.saga_bench import QUICK, Task, run_step
from tests.integration.test_saga_kills import Brake, did_all, is_key, only_open, rolled_back, start
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")
reconcile_target = Target("SagaReconciler", "reconcile", None, ReconcileReport)
list_letters = Target("DeadLetters", "list", DeadLetterListRequest, DeadLetterPage)
redrive = Target("DeadLetters", "redrive", DeadLetterActionRequest, ActionReceipt)


def reconciler_of(engine: RestateServer, **limits: Any) -> tuple[SagaReconciler, SagaReconcilerConfig]:
    grace = timedelta(milliseconds=1)
    config = SagaReconcilerConfig(admin_url=engine.admin, ingress_url=engine.ingress, grace=grace, **limits)
    return SagaReconciler(config), config


async def waiting_pass(admin: AdminClient, saga: str) -> str | None:
    """Return the invocation of a rollback that waits for a compensation."""
    rows = await admin.query(
        "select i.id from sys_invocation_status i join sys_journal j on j.id = i.id where i.status != 'completed' "
        f"and i.target_service_name = 'ExecutionRollbacks' and {is_key('i.target_service_key', saga)} "
        "and j.entry_type = 'Command: AttachInvocation'"
    )
    return rows[0]["id"] if rows else None


async def test_rollback_killed_after_resume_is_resumed_again(bench, did, admin, engine):
    reconciler, config = reconciler_of(engine, interval=timedelta(seconds=1))
    name = f"Alone{uuid4().hex[:8]}"

    async def alone(cp: Orchestration) -> None:
        cp.add_compensation_step("undo_slowly", Task(key=cp.key, name="a"))
        raise Refused("enough", 410)

    async def main(cp: Orchestration) -> None:
        """Do nothing."""

    service = bench.orchestration(name, alone, SagaConfig(**QUICK))
    brake = Brake(did, service)
    await bench.serve(main, service, reconciler)
    key = str(uuid4())
    saga = f"{name}:{key}"
    await start(bench, name, key)
    await did_all(bench, f"compensating {key}/a")
    await admin.control_invocation(await eventually(lambda: waiting_pass(admin, saga), what="waiting pass"), "kill")

    async def stalled() -> bool:
        return saga in {saga_of(find.id) for find in await find_orphans(admin, config)}

    await eventually(stalled, what="stalled rollback")
    async with reconciler.watching():  # scans at once, then after a second
        await admin.control_invocation(
            await eventually(lambda: waiting_pass(admin, saga), what="next waiting pass"), "kill"
        )
        brake.release()
        await rolled_back(bench, saga)
    assert did.count(f"undo {key}/a") == 1


async def test_rollback_killed_during_admission_is_resubmitted(bench, did, admin, engine, monkeypatch):
    monkeypatch.setattr(submission, "OUTCOME_POLLS", RetryPolicy(timedelta(milliseconds=500), max_attempts=None))
    reconciler, _ = reconciler_of(engine)

    class Slow:
        """Delays the state entry of a step."""

        def __init__(self, ctx: sdk.ObjectContext, position: int) -> None:
            self._ctx = ctx
            self._state = schema.step_progress_state(ctx, position)

        async def set(self, progress: StepProgress) -> None:
            await self._ctx.sleep(timedelta(minutes=1))
            await self._state.set(progress)

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await run_step(cp, "b", fails=-1)

    await bench.serve(main, reconciler, strategy=CompensationStrategy.COMPLETED)
    key = str(uuid4())
    saga = f"{bench.name}:{key}"

    async def partially_admitted() -> str | None:
        rows = await admin.query(
            "select i.id from sys_invocation_status i join sys_journal j on j.id = i.id "
            f"where i.target_service_name = 'ExecutionRollbacks' and {is_key('i.target_service_key', saga)} "
            "and j.entry_type = 'Command: Sleep'"
        )
        return rows[0]["id"] if rows else None

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "step_progress_state", Slow)
        await start(bench, bench.name, key)
        partial = await eventually(partially_admitted, what="partially admitted rollback")
    await admin.control_invocation(partial, "kill")

    async def ended() -> bool:
        await bench.ingress.call(reconcile_target, key="all")
        return not await admin.query(
            f"select id from sys_invocation_status where target_service_key = {sql_text(key)} and status != 'completed'"
        )

    await eventually(ended, what="end of the saga")
    await rolled_back(bench, saga)
    assert bench.undone(key) == ["undo a"]  # the second request also says that b never completed


async def test_dispatcher_kills_do_not_repeat_compensation(bench, did, admin, monkeypatch):
    kills = 5
    dispatcher = sdk.Service("RollbackDispatcher")
    released = threading.Event()

    @handler(dispatcher, name="start")
    async def start_and_wait(ctx: sdk.Context, request: StartCompensation) -> str:
        sent = await RollbackDispatcher().start(ctx, request)
        did.add(f"sent {request.idempotency_key}")
        if len([entry for entry in did.all() if entry.startswith("sent ")]) <= kills:
            assert await asyncio.to_thread(released.wait, 30)
        return sent

    handler(dispatcher)(RollbackDispatcher().compensate)
    monkeypatch.setattr(hosting, "RollbackDispatcher", lambda: SimpleNamespace(definition=dispatcher))

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        raise Refused("enough", 410)

    await bench.serve(main)
    key = str(uuid4())
    saga = f"{bench.name}:{key}"
    await start(bench, bench.name, key)
    open_invocations = (
        "select target_handler_name as handler, id from sys_invocation_status where status != 'completed' "
        "and target_service_name = 'RollbackDispatcher'"
    )

    async def waiting_dispatcher(number: int) -> str | None:
        """Return the waiting dispatcher, once the compensation has ended: a kill also ends sent invocations."""
        if len([entry for entry in did.all() if entry.startswith("sent ")]) < number:
            return None
        running = {row["handler"]: row["id"] for row in await admin.query(open_invocations)}
        return None if "compensate" in running else running.get("start")

    for number in range(1, kills + 1):
        invocation = await eventually(lambda number=number: waiting_dispatcher(number), what=f"dispatcher {number}")
        await admin.control_invocation(invocation, "kill")
    released.set()
    await rolled_back(bench, saga)
    (step,) = (await bench.ingress.call(rollback_status, key=saga)).steps
    assert (step.state, step.attempts) == (CompensationState.UNDONE, 0)
    assert bench.undone(key) == ["undo a"]


class BlockAfterWrite:
    """Blocks a rollback after the state entry of a step that is no longer pending, until a kill."""

    def __init__(self, ctx: sdk.ObjectContext, *_: Any) -> None:
        self._ctx = ctx
        self._state = schema.step_progress_state(ctx, 1)

    async def set(self, progress: StepProgress) -> None:
        await self._state.set(progress)
        if progress.state is not CompensationState.PENDING:
            await self._ctx.sleep(timedelta(minutes=1))


async def dead_letter(admin: AdminClient, saga: str) -> bool:
    """Return whether the first step of a saga is a dead letter."""
    sql = f"select value_utf8 from state where {is_key('service_key', saga)} and key = 'step/000001'"
    return any(
        StepProgress.model_validate_json(row["value_utf8"]).state is CompensationState.DEAD_LETTER
        for row in await admin.query(sql)
    )


async def redriven(admin: AdminClient, saga: str) -> bool:
    return not await dead_letter(admin, saga)


async def test_dead_letter_and_redrive_survive_kill(bench, did, admin, engine, monkeypatch):
    reconciler, _ = reconciler_of(engine)

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a", undo_fails=1)
        raise Refused("enough", 410)

    await bench.serve(main, reconciler, max_attempts=1)
    key = str(uuid4())
    saga = f"{bench.name}:{key}"
    ask = DeadLetterActionRequest(id=f"{saga}/1", actor="ada", reason="repaired")

    async def letters(count: int) -> bool:
        await bench.ingress.call(reconcile_target, key="all")
        return (await bench.ingress.call(list_letters, DeadLetterListRequest(saga_id=saga))).total == count

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "step_progress_state", BlockAfterWrite)
        await start(bench, bench.name, key)
        await eventually(lambda: dead_letter(admin, saga), what="failed compensation")
        await admin.control_invocation(await only_open(admin, "ExecutionRollbacks", "run", saga), "kill")
    await eventually(lambda: letters(1), what="dead letter")

    async def never(ctx: sdk.Context, _: str) -> None:
        await ctx.sleep(timedelta(minutes=1))

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "remove_dead_letter", never)
        await bench.ingress.send(redrive, ask)
        await eventually(lambda: redriven(admin, saga), what="redrive")
        await admin.control_invocation(await only_open(admin, "ExecutionRollbacks", "apply", saga), "kill")

    async def undone() -> bool:
        await bench.ingress.call(reconcile_target, key="all")
        return (await bench.ingress.call(rollback_status, key=saga)).status is RollbackState.ROLLED_BACK

    await eventually(undone, what="end of the rollback")
    with pytest.raises(IngressError, match="not a dead letter"):
        await bench.ingress.call(redrive, ask)
    await eventually(lambda: letters(0), what="end of the dead letter")
    assert bench.undone(key) == ["undo a", "undo a"]

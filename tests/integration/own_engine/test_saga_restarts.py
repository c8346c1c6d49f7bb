"""Restart of the saga service during a rollback."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import Orchestration, Target, WorkflowClient
from perdure._runtime.dispatch import SHORT_RETRIES
from perdure.errors import Refused
from perdure.handlers import handler
from perdure.saga.dispatch import RollbackDispatcher, StartCompensation
from perdure.saga.messages import ExternalRollbackReceipt, ExternalRollbackRequest, rollback_status
from perdure.saga.status import CompensationState
from perdure.serving import build_app
from perdure.testing.served import ServedApp
from tests.integration.saga_bench import Task, do_task, run_step, truth, undo_of
from tests.integration.test_saga_kills import did_all, rolled_back, start
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")


@pytest.mark.parametrize("max_attempts", [1, 5])
@pytest.mark.parametrize("has_sent", [True, False])
async def test_dispatcher_outage_costs_no_attempt(bench, did, admin, has_sent, max_attempts):
    dispatcher = sdk.Service("RollbackDispatcher", ingress_private=True, invocation_retry_policy=SHORT_RETRIES)
    reached, back = threading.Event(), threading.Event()

    @handler(dispatcher, name="start")
    async def start_and_hang(ctx: sdk.Context, request: StartCompensation) -> str:
        sent = await RollbackDispatcher().start(ctx, request) if has_sent or back.is_set() else ""
        if not back.is_set():
            reached.set()
            await eventually(truth(back.is_set), what="end of the test", within=60)
        return sent

    async def main(cp: Orchestration) -> None:
        task = Task(key=cp.key, name="a")
        await cp.step("a", do_task, task, compensate=undo_of(cp, task, "undo"))  # the dispatcher only starts it
        raise Refused("enough", 410)

    await bench.serve(main, max_attempts=max_attempts)
    key = str(uuid4())
    with ServedApp(build_app(dispatcher), http="2") as gone:
        await admin.register(gone.url)
        await start(bench, bench.name, key)
        await eventually(truth(reached.is_set), what="running dispatcher")
        if has_sent:
            await did_all(bench, f"undo {key}/a")
    (deployment,) = [each for each in await admin.deployments() if str(each["uri"]).rstrip("/") == gone.url]

    async def failed() -> list[Any] | None:
        rows = await admin.query(
            "select id from sys_invocation where target_service_name = 'RollbackDispatcher' "
            "and completion_result = 'failure'"
        )
        return rows or None

    dispatchers = await eventually(failed, what="failed dispatcher")
    back.set()
    with ServedApp(build_app(dispatcher), http="2") as again:
        await admin.move_deployment(deployment["id"], again.url)
        await rolled_back(bench, f"{bench.name}:{key}")
        await admin.remove_deployment(deployment["id"])
    for row in dispatchers:
        await admin.control_invocation(row["id"], "purge")
    assert did.count(f"undo {key}/a") == 1
    found = await bench.ingress.call(rollback_status, key=f"{bench.name}:{key}")
    assert [(step.state, step.attempts) for step in found.steps] == [(CompensationState.UNDONE, 0)]


async def test_concurrent_rollback_requests_are_all_answered(bench, did, admin):
    requester = sdk.Service(f"Requester{uuid4().hex[:8]}")

    @handler(requester, name="ask")
    async def ask(ctx: sdk.Context, key: str) -> None:
        target = Target(bench.name, "roll_back", ExternalRollbackRequest, ExternalRollbackReceipt)
        await WorkflowClient(ctx, target, key).call(ExternalRollbackRequest(reason="lost", wait=False))

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        _, never = cp.ctx.awakeable()
        await never

    await bench.serve(main, requester)
    for _ in range(10):
        key = str(uuid4())
        invocation = await start(bench, bench.name, key)
        await did_all(bench, f"done {key}/a")
        await admin.control_invocation(invocation, "kill")
        target = Target(requester.name, "ask", str, None)
        await asyncio.gather(*(bench.ingress.call(target, key) for _ in range(4)))
        await rolled_back(bench, f"{bench.name}:{key}")
        assert did.count(f"undo {key}/a") == 1

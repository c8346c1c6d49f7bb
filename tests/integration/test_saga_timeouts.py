"""Retry of a step after a timeout, while the attempt that timed out still runs."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import CompensationStrategy, DataPlaneContext, DataPlaneService, Orchestration, RunConfig, Step, Target
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, Refused
from perdure.handlers import handler
from perdure.retry import RetryPolicy
from perdure.saga.compensations import BoundCompensation
from perdure.saga.messages import NEVER_COMPLETED_HEADER, RollbackStatus
from perdure.saga.schema import CompensationHandler
from perdure.saga.status import CompensationState, RollbackState
from tests.integration.saga_bench import Bench, Task, run_step, step, truth, undo_of
from tests.support import Recording, eventually

LIMIT = timedelta(seconds=1)  # longer than a normal attempt on a busy machine
AGAIN = RetryPolicy(initial_interval=timedelta(milliseconds=10), max_attempts=2)

slowly = Target("Slow", "do", Task, str)


class Slow:
    """A task whose attempts hang until released, succeed or are refused, as ``attempts`` says in order."""

    def __init__(self, did: Recording, *attempts: str) -> None:
        self.invocations: list[str] = []
        self._did = did
        self._attempts = attempts
        self._released = [threading.Event() for _ in attempts]

    def release(self, attempt: int) -> None:
        self._released[attempt - 1].set()

    def service(self) -> DataPlaneService:
        slow = DataPlaneService("Slow", run=RunConfig(max_retries=0))

        @slow.handler("do")
        async def _do(ctx: DataPlaneContext, task: Task) -> str:
            def act() -> str:  # in a thread, which no cancel ends
                self.invocations.append(ctx.invocation_id)
                number = len(self.invocations)
                self._did.add(f"do {task.key}/{number}")
                if self._attempts[number - 1] == "refused":
                    raise Refused("busy", 503)
                if self._attempts[number - 1] == "hangs":
                    assert self._released[number - 1].wait(30), "the attempt was not released"
                self._did.add(f"done {task.key}/{number}")
                return f"attempt {number}"

            return await ctx.run("do", act)

        return slow


def slow_step(cp: Orchestration, retry: RetryPolicy = AGAIN) -> Step[Task, str]:
    task = Task(key=cp.key, name="slow")
    return Step("slow", slowly, task, compensate=undo_of(cp, task), timeout=LIMIT, retry=retry, retry_on={408})


async def do_slowly(cp: Orchestration) -> str:
    return str((await cp.parallel(slow_step(cp)))[0])


def begin(bench: Bench) -> tuple[str, asyncio.Task[Any]]:
    key = str(uuid4())
    return key, asyncio.create_task(bench.ingress.call(Target(bench.name, "run", None, object), key=key))


async def awaited(bench: Bench, key: str) -> list[str]:
    """Return the invocations whose end the rollback of a saga awaits or awaited."""
    async with AdminClient(bench.admin_url) as admin:
        rows = await admin.query(
            "select j.entry_json as entry from sys_journal j join sys_invocation_status i on i.id = j.id "
            "where j.entry_type = 'Command: AttachInvocation' and i.target_service_name = 'ExecutionRollbacks' "
            f"and i.target_service_key like {sql_text(f'{bench.name}:{key}@%')}"
        )
    return [json.loads(row["entry"])["Command"]["AttachInvocation"]["target"]["InvocationId"] for row in rows]


async def until_awaited(bench: Bench, key: str, slow: Slow, *attempts: int) -> None:
    """Wait until the rollback of a saga awaits these attempts."""

    async def probe() -> bool:
        started = slow.invocations
        expected = {started[each - 1] for each in attempts if each <= len(started)}
        return len(started) >= max(attempts) and expected <= set(await awaited(bench, key))

    await eventually(probe, what=f"rollback that waits for {attempts}")


async def rolled_back(bench: Bench, key: str) -> RollbackStatus:
    async def probe() -> RollbackStatus | None:
        try:
            status = await bench.rollback(key)
        except IngressError as error:
            if error.status_code == 404:
                return None
            raise
        return None if status.status is RollbackState.RUNNING else status

    return await eventually(probe, what=f"end of the rollback of {key}")


@pytest.mark.parametrize("strategy", [CompensationStrategy.COMPLETED, CompensationStrategy.ALL])
async def test_rollback_awaits_timed_out_attempt(bench, did, strategy):
    slow = Slow(did, "hangs", "refused")
    await bench.serve(do_slowly, slow.service(), strategy=strategy)
    key, call = begin(bench)
    await until_awaited(bench, key, slow, 1)
    assert did.of(key) == ["do 1", "do 2"]
    slow.release(1)
    with pytest.raises(IngressError, match="step 'slow' failed: busy"):
        await call
    assert did.of(key) == ["do 1", "do 2", "done 1", "undo slow"]
    assert [step.state for step in (await bench.rollback(key)).steps] == [CompensationState.UNDONE]


async def test_timed_out_attempt_does_not_delay_retry(bench, did):
    slow = Slow(did, "hangs", "succeeds")
    await bench.serve(do_slowly, slow.service())
    key, call = begin(bench)
    assert await call == "attempt 2"
    assert did.of(key) == ["do 1", "do 2", "done 2"]
    slow.release(1)


@pytest.mark.parametrize("strategy", [CompensationStrategy.COMPLETED, CompensationStrategy.ALL])
async def test_overlapping_attempts_are_compensated_once(bench, did, strategy):
    async def main(cp: Orchestration) -> None:
        assert await do_slowly(cp) == "attempt 2"
        await run_step(cp, "next", fails=-1)

    slow = Slow(did, "hangs", "succeeds")
    await bench.serve(main, slow.service(), strategy=strategy)
    key, call = begin(bench)
    await until_awaited(bench, key, slow, 1)
    assert "undo slow" not in did.of(key)
    slow.release(1)
    with pytest.raises(IngressError, match="next is out of order"):
        await call
    assert [entry for entry in did.of(key) if "next" not in entry] == ["do 1", "do 2", "done 2", "done 1", "undo slow"]
    assert (await bench.rollback(key)).steps[0].completed is True


async def test_rollback_awaits_all_timed_out_attempts(bench, did):
    slow = Slow(did, "hangs", "hangs", "refused")
    again = replace(AGAIN, max_attempts=3)

    async def main(cp: Orchestration) -> None:
        await cp.parallel(slow_step(cp, again), step(cp, "other"))

    await bench.serve(main, slow.service())
    key, call = begin(bench)
    await until_awaited(bench, key, slow, 1, 2)
    slow.release(2)
    await eventually(truth(lambda: did.count(f"done {key}/2") == 1), what="end of the second attempt")
    assert "undo slow" not in did.of(key)
    slow.release(1)
    with pytest.raises(IngressError, match="step 'slow' failed: busy"):
        await call
    assert [each for each in did.of(key) if "other" not in each] == [
        *("do 1", "do 2", "do 3"),
        *("done 2", "done 1", "undo slow"),
    ]


async def test_cancel_during_retry_awaits_both_attempts(bench, did):
    slow = Slow(did, "hangs", "hangs")

    async def main(cp: Orchestration) -> None:
        await cp.parallel(slow_step(cp))

    await bench.serve(main, slow.service(), strategy=CompensationStrategy.COMPLETED)
    key, call = begin(bench)
    await eventually(truth(lambda: did.count(f"do {key}/2") == 1), what="second attempt")
    async with AdminClient(bench.admin_url) as admin:
        rows = await admin.query(
            f"select id from sys_invocation_status where target_service_name = {sql_text(bench.name)} "
            f"and target_handler_name = 'run' and target_service_key = {sql_text(key)}"
        )
        await admin.control_invocation(rows[0]["id"], "cancel")
    with pytest.raises(IngressError, match="cancelled"):
        await call
    await until_awaited(bench, key, slow, 1, 2)
    slow.release(2)
    await eventually(truth(lambda: did.count(f"done {key}/2") == 1), what="end of the second attempt")
    slow.release(1)
    await rolled_back(bench, key)
    assert did.of(key) == ["do 1", "do 2", "done 2", "done 1", "undo slow"]


async def test_successful_retry_counts_as_completed(bench, did):
    slow, repair = Slow(did, "hangs", "succeeds"), sdk.Service("Repair")

    @handler(repair, name="undo")
    async def _undo(ctx: sdk.Context, task: Task) -> None:
        did.add(f"undo {task.key}/{ctx.request().headers.get(NEVER_COMPLETED_HEADER)}")

    async def main(cp: Orchestration) -> None:
        step = slow_step(cp)
        payload = step.request.model_dump(mode="json")
        undo = BoundCompensation("undo", CompensationHandler(service="Repair", handler="undo"), payload)
        await cp.parallel(replace(step, compensate=undo))
        await run_step(cp, "next", fails=-1)

    await bench.serve(main, slow.service(), repair)
    key, call = begin(bench)
    await until_awaited(bench, key, slow, 1)
    slow.release(1)  # it was cancelled, so it ends without a result
    with pytest.raises(IngressError, match="next is out of order"):
        await call
    assert did.of(key)[-1] == "undo None"

"""A step that is tried again after a timeout: the attempt that timed out may act yet, and is not forgotten."""

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

from perdure import (
    AdminClient,
    CompensationStrategy,
    DataPlaneContext,
    DataPlaneService,
    Orchestration,
    RunConfig,
    Step,
    StepRetry,
    Target,
)
from perdure.engine.admin import sql_text
from perdure.errors import IngressError, Refused
from perdure.handlers import handler
from perdure.saga.messages import NEVER_COMPLETED_HEADER, RollbackStatus
from perdure.saga.schema import CompensationHandler
from perdure.saga.status import CompensationState, RollbackState
from tests.integration.saga_bench import Bench, Task, run_step, step, truth
from tests.support import Recording, eventually

LIMIT = timedelta(seconds=1)  # what ends by itself takes less, even on a busy machine
AGAIN = StepRetry(max_attempts=2, initial_delay=timedelta(milliseconds=10), on=frozenset({408}))

slowly = Target("Slow", "do", Task, str)


class Slow:
    """A task whose attempts hang, succeed or are refused, each as told; one that hangs ends when it is let go.

    Args:
        did: What the attempts did.
        attempts: What the attempts do, in their order.
    """

    def __init__(self, did: Recording, *attempts: str) -> None:
        self.invocations: list[str] = []
        self._did = did
        self._attempts = attempts
        self._let_go = [threading.Event() for _ in attempts]

    def let_go(self, attempt: int) -> None:
        self._let_go[attempt - 1].set()

    def service(self) -> DataPlaneService:
        slow = DataPlaneService("Slow", run=RunConfig(max_retries=0))

        @slow.handler("do")
        async def _do(ctx: DataPlaneContext, task: Task) -> str:
            async def act() -> str:
                self.invocations.append(ctx.invocation_id)
                number = len(self.invocations)
                self._did.add(f"do {task.key}/{number}")
                if self._attempts[number - 1] == "refused":
                    raise Refused("busy", 503)
                if self._attempts[number - 1] == "hangs":
                    assert await asyncio.to_thread(self._let_go[number - 1].wait, 30), "nobody let it go"
                self._did.add(f"done {task.key}/{number}")
                return f"attempt {number}"

            return await ctx.run("do", act)

        return slow


def slow_step(cp: Orchestration, retry: StepRetry = AGAIN) -> Step[Task, str]:
    task = Task(key=cp.key, name="slow")
    return Step("slow", slowly, task, compensate="undo", timeout=LIMIT, retry=retry)


async def do_slowly(cp: Orchestration) -> str:
    return str((await cp.parallel(slow_step(cp)))[0])


def begin(bench: Bench) -> tuple[str, asyncio.Task[Any]]:
    key = str(uuid4())
    return key, asyncio.create_task(bench.ingress.call(Target(bench.name, "run", type(None), object), key=key))


async def awaited(bench: Bench, key: str) -> list[str]:
    """Return whose end the rollback of a saga waits for, or has waited for."""
    async with AdminClient(bench.admin_url) as admin:
        rows = await admin.query(
            "select j.entry_json as entry from sys_journal j join sys_invocation_status i on i.id = j.id "
            "where j.entry_type = 'Command: AttachInvocation' and i.target_service_name = 'Rollbacks' "
            f"and i.target_service_key = {sql_text(f'{bench.name}:{key}')}"
        )
    return [json.loads(row["entry"])["Command"]["AttachInvocation"]["target"]["InvocationId"] for row in rows]


async def until_awaited(bench: Bench, key: str, slow: Slow, *attempts: int) -> None:
    """Wait until the rollback of a saga waits for these attempts. None of what it undoes is undone by then."""

    async def probe() -> bool:
        begun = slow.invocations
        return len(begun) >= max(attempts) and {begun[each - 1] for each in attempts} <= set(await awaited(bench, key))

    await eventually(probe, what=f"rollback that waits for {attempts}")


async def rolled_back(bench: Bench, key: str) -> RollbackStatus:
    async def probe() -> RollbackStatus | None:
        try:
            status = await bench.rollback(key)
        except IngressError as error:
            if error.status_code == 404:  # it is on its way
                return None
            raise
        return None if status.status is RollbackState.RUNNING else status

    return await eventually(probe, what=f"end of the rollback of {key}")


@pytest.mark.parametrize("strategy", [CompensationStrategy.COMPLETED, CompensationStrategy.ALL])
async def test_an_attempt_that_timed_out_is_undone_after_its_end_though_the_next_one_failed(bench, did, strategy):
    slow = Slow(did, "hangs", "refused")
    await bench.serve(do_slowly, slow.service(), strategy=strategy)
    key, call = begin(bench)
    await until_awaited(bench, key, slow, 1)
    assert did.of(key) == ["do 1", "do 2"]
    slow.let_go(1)
    with pytest.raises(IngressError, match="step 'slow' failed: busy"):
        await call
    assert did.of(key) == ["do 1", "do 2", "done 1", "undo slow"]
    assert [step.state for step in (await bench.rollback(key)).steps] == [CompensationState.UNDONE]


async def test_an_attempt_that_timed_out_holds_up_no_later_one_and_no_result(bench, did):
    slow = Slow(did, "hangs", "succeeds")
    await bench.serve(do_slowly, slow.service())
    key, call = begin(bench)
    assert await call == "attempt 2"
    assert did.of(key) == ["do 1", "do 2", "done 2"]
    slow.let_go(1)


@pytest.mark.parametrize("strategy", [CompensationStrategy.COMPLETED, CompensationStrategy.ALL])
async def test_what_a_later_attempt_did_is_undone_once_after_the_end_of_the_one_that_timed_out(bench, did, strategy):
    async def main(cp: Orchestration) -> None:
        assert await do_slowly(cp) == "attempt 2"
        await run_step(cp, "next", fails=-1)

    slow = Slow(did, "hangs", "succeeds")
    await bench.serve(main, slow.service(), strategy=strategy)
    key, call = begin(bench)
    await until_awaited(bench, key, slow, 1)
    assert "undo slow" not in did.of(key)
    slow.let_go(1)
    with pytest.raises(IngressError, match="next is out of order"):
        await call
    assert [entry for entry in did.of(key) if "next" not in entry] == ["do 1", "do 2", "done 2", "done 1", "undo slow"]
    assert (await bench.rollback(key)).steps[0].completed is True


async def test_each_attempt_that_timed_out_ends_before_the_step_is_undone(bench, did):
    slow = Slow(did, "hangs", "hangs", "refused")
    again = replace(AGAIN, max_attempts=3)

    async def main(cp: Orchestration) -> None:
        await cp.parallel(slow_step(cp, again), step(cp, "other"))

    await bench.serve(main, slow.service())
    key, call = begin(bench)
    await until_awaited(bench, key, slow, 1, 2)
    slow.let_go(2)
    await eventually(truth(lambda: did.count(f"done {key}/2") == 1), what="end of the second attempt")
    assert "undo slow" not in did.of(key)
    slow.let_go(1)
    with pytest.raises(IngressError, match="step 'slow' failed: busy"):
        await call
    assert [each for each in did.of(key) if "other" not in each] == [
        *("do 1", "do 2", "do 3"),
        *("done 2", "done 1", "undo slow"),
    ]


async def test_a_cancel_during_a_later_attempt_undoes_the_step_after_the_end_of_both(bench, did):
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
        await admin.act(rows[0]["id"], "cancel")
    with pytest.raises(IngressError, match="cancelled"):
        await call
    await until_awaited(bench, key, slow, 1, 2)
    slow.let_go(2)
    await eventually(truth(lambda: did.count(f"done {key}/2") == 1), what="end of the second attempt")
    slow.let_go(1)
    await rolled_back(bench, key)
    assert did.of(key) == ["do 1", "do 2", "done 2", "done 1", "undo slow"]


async def test_a_step_that_a_later_attempt_completed_is_not_undone_as_one_that_never_did(bench, did):
    slow, undoing = Slow(did, "hangs", "succeeds"), sdk.Service("Undoing")

    @handler(undoing, name="undo")
    async def _undo(ctx: sdk.Context, task: Task) -> None:
        did.add(f"undo {task.key}/{ctx.request().headers.get(NEVER_COMPLETED_HEADER)}")

    async def main(cp: Orchestration) -> None:
        await cp.parallel(replace(slow_step(cp), compensate=CompensationHandler(service="Undoing", handler="undo")))
        await run_step(cp, "next", fails=-1)

    await bench.serve(main, slow.service(), undoing)
    key, call = begin(bench)
    await until_awaited(bench, key, slow, 1)
    slow.let_go(1)  # it was cancelled, so its own end is one without a result
    with pytest.raises(IngressError, match="next is out of order"):
        await call
    assert did.of(key)[-1] == "undo None"

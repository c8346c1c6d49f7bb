"""Reuse of a workflow key after its retention: each execution is rolled back and reported independently."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    CompensationStrategy,
    IngressClient,
    Orchestration,
    RunConfig,
    SagaConfig,
    ServiceClient,
    StatusData,
    Target,
    handler,
    run_with_retry,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, Refused
from perdure.saga import rollback
from perdure.saga.messages import (
    ActionReceipt,
    DeadLetterActionRequest,
    DeadLetterListRequest,
    DeadLetterPage,
    RollbackStatus,
    rollback_status,
)
from perdure.saga.status import RollbackState
from perdure.saga.timeline import Timeline, read_timeline
from tests.integration.saga_bench import QUICK, Bench, Task, do_task, forget_runs, truth, undo_of, undo_task
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")
Strategy = CompensationStrategy


class Jobs:
    """A service whose executions under one key carry a number in the names of their tasks."""

    def __init__(self, bench: Bench, did: Recording, strategy: CompensationStrategy, **config: Any) -> None:
        self.bench, self.did = bench, did
        self.name, self.key = f"Again{uuid4().hex[:8]}", str(uuid4())
        self.number = 1
        self.fails_of_b = self.more_steps = 0
        self.repaired = threading.Event()
        self.service = bench.orchestration(
            self.name, self.main, SagaConfig(**{**QUICK, "strategy": strategy, "max_attempts": 1, **config})
        )
        self.service.compensation("undo_once_repaired")(self._undo_once_repaired)

    async def _undo_once_repaired(self, ctx: sdk.Context, task: Task) -> None:
        async def check() -> bool:
            self.did.add(f"try {task.key}/{task.name}")
            return self.repaired.is_set()

        if not await ctx.run_typed("check", check):
            raise Refused(f"{task.name} can't be undone", 503)
        await ServiceClient(ctx, undo_task).call(task)

    def task(self, name: str, **more: Any) -> Task:
        return Task(key=self.key, name=f"{name}{self.number}", **more)

    async def main(self, cp: Orchestration) -> None:
        """Fail after the steps. The first execution's step b can be compensated only after ``repaired`` is set."""
        cp.add_compensation_step("undo", self.task("last"), step="last", after_others=True)
        await self.run_step(cp, "a", self.task("a"))
        compensation = "undo_once_repaired" if self.number == 1 else "undo"
        await self.run_step(cp, "b", self.task("b", undo_fails=self.fails_of_b), compensation)
        for each in range(self.more_steps if self.number == 1 else 0):
            await self.run_step(cp, f"more {each}", self.task(f"more {each}/"))
        raise Refused("enough", 410)

    async def run_step(self, cp: Orchestration, name: str, task: Task, compensation: str = "undo") -> None:
        await cp.step(name, do_task, task, compensate=undo_of(cp, task, compensation))

    async def serve(self) -> None:
        async def nothing(cp: Orchestration) -> None:
            """Do nothing."""

        await self.bench.serve(nothing, self.service)

    @property
    def run(self) -> Target[None, object]:
        return Target(self.name, "run", None, object)

    async def fail(self) -> dict[str, str]:
        """Run the orchestration; return the rollback fields of its error."""
        with pytest.raises(IngressError) as failed:
            await asyncio.wait_for(self.bench.ingress.call(self.run, key=self.key), 30)
        metadata = failed.value.metadata
        return {name: metadata[name] for name in ("rollback", "rollback_undone", "dead_letters") if name in metadata}

    async def next_execution(self, admin: AdminClient) -> None:
        """End the retention of an execution."""
        await forget_runs(admin, self.key)
        self.number += 1

    def undone(self, number: int) -> list[str]:
        """Return the compensated steps of an execution, in order."""
        entries = [each.removeprefix("undo ") for each in self.bench.undone(self.key)]
        return [each.removesuffix(str(number)) for each in entries if each.endswith(str(number))]

    async def recorded(self, entry: str) -> None:
        async def probe() -> bool:
            return entry in self.did.of(self.key)

        await eventually(probe, what=entry)

    async def rollback(self) -> RollbackStatus:
        return await self.bench.ingress.call(rollback_status, key=f"{self.name}:{self.key}")

    async def outcomes_are(self, *wanted: RollbackState) -> RollbackStatus:
        """Wait until the rollbacks of the executions, in order, have these outcomes."""

        async def probe() -> RollbackStatus | None:
            found = await self.rollback()
            outcomes = [*(each.status for each in found.earlier), found.status]
            return found if outcomes == list(wanted) else None

        return await eventually(probe, what=f"executions that are {wanted}")

    async def act(self, action: str, position: int) -> ActionReceipt:
        target = Target("DeadLetters", action, DeadLetterActionRequest, ActionReceipt)
        letter = f"{self.name}:{self.key}/{position}"
        return await self.bench.ingress.call(target, DeadLetterActionRequest(id=letter, actor="olga"))

    async def letters(self) -> list[str]:
        target = Target("DeadLetters", "list", DeadLetterListRequest, DeadLetterPage)
        found = await self.bench.ingress.call(target, DeadLetterListRequest(saga_id=f"{self.name}:{self.key}"))
        return [each.id.rpartition("/")[2] for each in found.items]


@pytest.fixture
async def admin(restate) -> AsyncIterator[AdminClient]:
    async with AdminClient(restate.server.admin) as admin:
        yield admin


async def end_first_execution(jobs: Jobs, admin: AdminClient, strategy: CompensationStrategy) -> dict[str, str]:
    """Fail the first execution, and end its orchestration."""
    if strategy is not Strategy.FOREVER:
        return await jobs.fail()
    invocation = await jobs.bench.ingress.send(jobs.run, None, key=jobs.key)
    await jobs.recorded("try b1")
    await admin.control_invocation(invocation, "cancel")  # its rollback never ends
    return {"rollback": "running"}


# Outcome of the first execution while step b fails to compensate, steps compensated then, and after the repair.
FIRST: dict[CompensationStrategy, tuple[str, list[str], list[str]]] = {
    Strategy.ALL: ("needs_attention", ["a"], ["a", "b", "last"]),
    Strategy.STOP: ("needs_attention", [], ["b", "a", "last"]),
    Strategy.COMPLETED: ("needs_attention", ["a"], ["a", "b", "last"]),
    Strategy.BEST_EFFORT: ("rolled_back", ["a"], ["a"]),
    Strategy.UNTIL_SUCCESS: ("needs_attention", ["a"], ["a", "b"]),
    Strategy.FOREVER: ("running", [], ["b", "a", "last"]),
}
SECOND = {strategy: ["b", "a", "last"] for strategy in Strategy} | {Strategy.UNTIL_SUCCESS: ["b"]}


@pytest.mark.parametrize("strategy", Strategy)
async def test_second_execution_rolls_back_independently(bench, did, admin, strategy):
    jobs = Jobs(bench, did, strategy)
    await jobs.serve()
    outcome, undone, undone_later = FIRST[strategy]
    assert (await end_first_execution(jobs, admin, strategy))["rollback"] == outcome
    assert jobs.undone(1) == undone
    await jobs.next_execution(admin)
    assert await jobs.fail() == {"rollback": "rolled_back", "rollback_undone": ",".join(SECOND[strategy])}
    assert jobs.undone(2) == SECOND[strategy]
    found = await jobs.rollback()
    assert ([each.status for each in found.earlier], found.status) == ([outcome], "rolled_back")
    assert [each.number for each in found.executions] == [1, 2]
    assert [each.position for execution in found.executions for each in execution.steps] == [1, 2, 3] * 2
    jobs.repaired.set()
    assert await jobs.letters() == (["3"] if outcome == "needs_attention" else [])
    if outcome == "needs_attention":
        await jobs.act("redrive", 3)
    found = await jobs.outcomes_are(RollbackState.ROLLED_BACK, RollbackState.ROLLED_BACK)
    assert jobs.undone(1) == undone_later
    assert jobs.undone(2) == SECOND[strategy]
    assert await jobs.letters() == []
    assert [each.step for each in found.earlier[0].audit_log] == (["b"] if outcome == "needs_attention" else [])
    assert found.audit_log == []


WITH_LETTERS = [strategy for strategy, (outcome, _, _) in FIRST.items() if outcome == "needs_attention"]


@pytest.mark.parametrize("strategy", WITH_LETTERS)
async def test_discarded_step_does_not_block_later_execution(bench, did, admin, strategy):
    jobs = Jobs(bench, did, strategy)
    await jobs.serve()
    await jobs.fail()
    await jobs.act("discard", 3)
    await jobs.outcomes_are(RollbackState.ROLLED_BACK)
    first = jobs.undone(1)
    await jobs.next_execution(admin)
    assert await jobs.fail() == {"rollback": "rolled_back", "rollback_undone": ",".join(SECOND[strategy])}
    assert jobs.undone(2) == SECOND[strategy]
    assert jobs.undone(1) == first
    assert "last" not in first
    await jobs.outcomes_are(RollbackState.ROLLED_BACK, RollbackState.ROLLED_BACK)


async def test_redrive_does_not_hurry_later_execution(bench, did, admin):
    wait = timedelta(seconds=4)
    jobs = Jobs(bench, did, Strategy.ALL, max_attempts=2, initial_delay=wait, max_delay=wait)
    await jobs.serve()
    await jobs.fail()
    await jobs.next_execution(admin)
    jobs.fails_of_b = 1
    second = asyncio.create_task(jobs.fail())
    await jobs.recorded("undo b2")
    jobs.repaired.set()
    await jobs.act("redrive", 3)
    await jobs.outcomes_are(RollbackState.ROLLED_BACK, RollbackState.RUNNING)
    assert bench.undone(jobs.key)[-3:] == [
        "undo b2",
        "undo b1",
        "undo last1",
    ]  # in this order: the redrive does not hurry b2
    assert await second == {"rollback": "rolled_back", "rollback_undone": "b,a,last"}
    assert jobs.undone(2) == ["b", "b", "a", "last"]


async def test_status_hides_rollback_of_earlier_execution(bench, did, admin, monkeypatch):
    jobs = Jobs(bench, did, Strategy.ALL)
    jobs.repaired.set()
    await jobs.serve()
    assert (await jobs.fail())["rollback"] == "rolled_back"
    await jobs.next_execution(admin)
    requested, proceed = threading.Event(), threading.Event()
    open_rollback = rollback._open

    async def held(*args: Any) -> Any:
        requested.set()
        await eventually(truth(proceed.is_set), what="permission to proceed")
        return await open_rollback(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "_open", held)
        failing = asyncio.create_task(jobs.fail())
        await eventually(truth(requested.is_set), what="request for a rollback")
        target = Target(jobs.name, "status", None, StatusData)
        status = await bench.ingress.call(target, key=jobs.key)
        proceed.set()
        assert (await failing)["rollback_undone"] == "b,a,last"
    assert (status.phase, status.is_complete) == ("compensating", False)
    assert status.metadata == {"rollback": "pending"}


async def test_timeline_and_status_show_own_execution(bench, did, admin):
    jobs = Jobs(bench, did, Strategy.ALL)
    jobs.more_steps = 2
    await jobs.serve()

    async def shown() -> tuple[Timeline, StatusData]:
        saga = await read_timeline(admin, bench.ingress, f"{jobs.name}:{jobs.key}")
        return saga, await bench.ingress.call(Target(jobs.name, "status", None, StatusData), key=jobs.key)

    await jobs.fail()
    saga, status = await shown()
    assert [each.undo for each in saga.steps] == ["pending", "undone", "dead_letter", "undone", "undone"]
    assert status.phase == "needs_attention"
    await jobs.next_execution(admin)
    await jobs.fail()
    saga, status = await shown()
    assert [each.undo for each in saga.steps] == ["undone"] * 3
    assert saga.rollback is not None
    assert saga.rollback.status is RollbackState.ROLLED_BACK
    assert status.phase == "rolled_back"
    assert status.metadata["steps"] == {"last": "undone", "a": "undone", "b": "undone"}
    assert [each.state for each in (await jobs.rollback()).earlier[0].steps] == [
        "pending", "undone", "dead_letter", "undone", "undone",
    ]  # fmt: skip


async def test_killed_execution_leaves_no_attempts(restate, did):
    """Each execution of a key may fail once, although both have the same invocation ID."""
    flow = sdk.Workflow(f"Retried{uuid4().hex[:8]}")

    @handler(flow, "main", name="run")
    async def run(ctx: sdk.WorkflowContext) -> None:
        def fail() -> None:
            did.add(f"fail {ctx.key()}/")
            raise OSError("gone")

        hour = timedelta(hours=1)
        await run_with_retry(ctx, RunConfig("work", max_retries=1, initial_delay=hour, max_delay=hour), fail)

    env = await restate.serve(flow)
    key, target = str(uuid4()), Target(flow.name, "run", None, None)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        for number in (1, 2):
            invocation = await ingress.send(target, key=key)

            async def status(invocation: str = invocation) -> str | None:
                [row] = await admin.query(f"select status from sys_invocation where id = {sql_text(invocation)}")
                return row["status"] if row["status"] in ("backing-off", "completed") else None

            assert await eventually(status, what="a failed attempt") == "backing-off", "waits for its second attempt"
            assert len(did.of(key)) == number
            await admin.control_invocation(invocation, "kill")
            await forget_runs(admin, key)

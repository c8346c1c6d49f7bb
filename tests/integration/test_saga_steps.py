"""What steps can be: parallel, retried, limited in time, past a pivot, nested, recorded by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import (
    AdminClient,
    CompensationStrategy,
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    RunConfig,
    SafeStep,
    SagaConfig,
    ServiceClient,
    Step,
    StepRetry,
    Target,
)
from perdure.errors import ConfigurationError, IngressError, Refused, SagaError
from perdure.saga import hosting
from perdure.saga.messages import ActReceipt, ActRequest, RollbackStatus, rollback_status
from perdure.saga.plan import Outcome
from tests.support import Recording, eventually


class Task(BaseModel):
    key: str
    name: str
    waits_for: str = ""
    """Name of the task that has to have started before this one ends."""
    fails: int = 0
    """How often it fails; -1 for always."""
    undo_fails: int = 0
    hangs: bool = False


do_task = Target("Tasks", "do", Task, str)
undo_task = Target("Tasks", "undo", Task, type(None))

Main = Callable[[Orchestration], Awaitable[Any]]
QUICK = {"initial_delay": timedelta(milliseconds=10), "max_delay": timedelta(milliseconds=30)}
MILLISECONDS_10 = timedelta(milliseconds=10)


class Bench:
    """Runs one orchestration, written by the test, against services that record what they do."""

    def __init__(self, restate: Any, did: Recording) -> None:
        self._restate = restate
        self._clients: list[IngressClient] = []
        self.did = did
        self.released = threading.Event()
        self.admin_url = ""
        self.name = f"Job{uuid4().hex[:8]}"

    def services(self, main: Main, config: SagaConfig, name: str | None = None) -> list[Any]:
        did, released = self.did, self.released
        tasks = DataPlaneService("Tasks", run=RunConfig(max_retries=0))

        async def do(task: Task) -> str:
            did.add(f"do {task.key}/{task.name}")
            if task.waits_for:
                await eventually(_truth(lambda: did.count(f"do {task.key}/{task.waits_for}") > 0), what=task.waits_for)
            if task.hangs:
                assert await asyncio.to_thread(released.wait, 30)
            if task.fails < 0 or did.count(f"do {task.key}/{task.name}") <= task.fails:
                raise Refused(f"{task.name} is out of order", 503, "out_of_order")
            did.add(f"done {task.key}/{task.name}")
            return task.name.upper()

        @tasks.handler("do")
        async def _do(ctx: DataPlaneContext, task: Task) -> str:
            return await ctx.run("do", do, task)

        @tasks.handler("undo")
        async def _undo(ctx: DataPlaneContext, task: Task) -> None:
            def undo() -> None:
                did.add(f"undo {task.key}/{task.name}")
                if task.undo_fails < 0 or did.count(f"undo {task.key}/{task.name}") <= task.undo_fails:
                    raise Refused(f"{task.name} can't be undone", 503, "stuck")

            await ctx.run("undo", undo)

        jobs = self.orchestration(name or self.name, main, config)
        return [tasks, jobs, *hosting.definitions()]

    def orchestration(self, name: str, main: Main, config: SagaConfig) -> ControlPlaneService:
        jobs = ControlPlaneService(name, saga=config)

        @jobs.compensation()
        async def undo(ctx: sdk.Context, task: Task) -> None:
            await ServiceClient(ctx, undo_task).call(task)

        @jobs.main()
        async def run(cp: Orchestration) -> Any:
            return await main(cp)

        return jobs

    async def serve(self, main: Main, *more: Any, **config: Any) -> IngressClient:
        saga = SagaConfig(**{**QUICK, **config})
        env = await self._restate.serve(*self.services(main, saga), *more)
        self.admin_url = env.admin
        self._clients.append(IngressClient(env.ingress))
        return self._clients[-1]

    async def run(self, main: Main, *more: Any, **config: Any) -> tuple[str, Any]:
        """Run an orchestration; return its key, and its result or its error."""
        ingress = await self.serve(main, *more, **config)
        key = str(uuid4())
        try:
            return key, await ingress.call(Target(self.name, "run", type(None), object), key=key)
        except IngressError as error:
            return key, error

    @property
    def ingress(self) -> IngressClient:
        return self._clients[-1]

    async def rollback(self, key: str) -> RollbackStatus:
        return await self.ingress.call(rollback_status, key=f"{self.name}:{key}")

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def _truth(check: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return check()

    return probe


def step(cp: Orchestration, name: str, **task: Any) -> Step[Task, str]:
    return Step(name, do_task, Task(key=cp.key, name=name, **task), compensate="undo")


async def run_step(cp: Orchestration, name: str, retry: StepRetry | None = None, **task: Any) -> str:
    return await cp.step(name, do_task, Task(key=cp.key, name=name, **task), compensate="undo", retry=retry)


@pytest.fixture
async def bench(restate, did):
    bench = Bench(restate, did)
    yield bench
    await bench.close()


async def test_parallel_steps_run_at_the_same_time_and_results_come_in_their_order(bench, did):
    async def main(cp: Orchestration) -> list[str]:
        # "a" ends only once "c" has started, so one after the other would never end.
        return await cp.parallel(step(cp, "a", waits_for="c"), step(cp, "b"), step(cp, "c", waits_for="a"))

    key, result = await bench.run(main)
    assert result == ["A", "B", "C"]
    assert sorted(did.of(key)) == ["do a", "do b", "do c", "done a", "done b", "done c"]


async def test_a_failed_parallel_step_waits_for_the_others_and_the_group_is_undone_together(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "first")
        await cp.parallel(step(cp, "a", waits_for="b"), step(cp, "b", fails=-1), step(cp, "c", fails=-1))

    key, error = await bench.run(main)
    assert error.message == "step 'b' failed: b is out of order"
    undone = [entry for entry in did.of(key) if entry.startswith("undo")]
    assert sorted(undone[:3]) == ["undo a", "undo b", "undo c"]
    assert undone[3:] == ["undo first"]
    assert did.of(key).index("done a") < did.of(key).index(undone[0])


async def test_local_parallel_steps_run_together(bench, did):
    async def main(cp: Orchestration) -> list[str]:
        async def local(name: str) -> str:
            did.add(f"do {cp.key}/{name}")
            other = {"x": "y", "y": "x"}[name]
            await eventually(_truth(lambda: did.count(f"do {cp.key}/{other}") > 0), what=other)
            return name

        return await cp.parallel(Step("x", local, "x"), Step("y", local, "y"))

    _, result = await bench.run(main)
    assert result == ["x", "y"]


async def test_a_step_is_tried_again_only_as_told(bench, did):
    async def main(cp: Orchestration) -> str:
        await run_step(cp, "a", StepRetry(max_attempts=3, initial_delay=MILLISECONDS_10), fails=2)
        await run_step(cp, "b", StepRetry(on=frozenset({429})), fails=1)
        return "never reached"

    key, error = await bench.run(main)
    assert error.message == "step 'b' failed: b is out of order"
    assert [entry for entry in did.of(key) if entry.startswith("do ")] == ["do a", "do a", "do a", "do b"]


async def test_a_step_over_its_time_limit_fails_and_is_undone_after_it_ended(bench, did):
    async def main(cp: Orchestration) -> str:
        task = Task(key=cp.key, name="slow", hangs=True)
        return await cp.step("slow", do_task, task, compensate="undo", timeout=timedelta(milliseconds=100))

    ingress = await bench.serve(main)
    key = str(uuid4())
    run = Target(bench.name, "run", type(None), object)
    call = asyncio.create_task(ingress.call(run, key=key))

    async def handed_over() -> bool:
        try:
            return bool(await bench.rollback(key))
        except IngressError as error:
            if error.status_code != 404:
                raise
            return False

    await eventually(handed_over, what="rollback")
    assert did.of(key) == ["do slow"]
    bench.released.set()
    with pytest.raises(IngressError) as failed:
        await call
    assert (failed.value.status_code, failed.value.metadata["code"]) == (408, "step_timeout")
    assert did.of(key) == ["do slow", "done slow", "undo slow"]


async def test_past_the_pivot_steps_are_tried_again_and_nothing_is_undone(bench, did):
    async def main(cp: Orchestration) -> str:
        await run_step(cp, "a")
        await cp.pivot()
        return await cp.step("b", do_task, Task(key=cp.key, name="b", fails=2))

    key, result = await bench.run(main)
    assert result == "B"
    assert did.of(key) == ["do a", "done a", "do b", "do b", "do b", "done b"]


async def test_a_saga_that_fails_past_its_pivot_waits_for_somebody_to_finish_it(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.pivot()
        await cp.step("b", do_task, Task(key=cp.key, name="b", fails=-1))

    key, error = await bench.run(main, max_attempts=2)
    assert error.metadata["rollback"] == "needs_attention"
    assert error.metadata["dead_letters"] == "pivot"
    assert did.of(key) == ["do a", "done a", "do b", "do b"]
    rollback = await bench.rollback(key)
    assert {each.step: each.state for each in rollback.steps} == {
        "a": "skipped",
        "pivot": "dead_letter",
        "b": "skipped",
    }


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


STRATEGIES: dict[CompensationStrategy, tuple[list[str], Outcome]] = {
    # c's action failed, b's compensation always fails (two attempts), a's succeeds
    CompensationStrategy.ALL: (["undo c", "undo b", "undo b", "undo a"], Outcome.NEEDS_ATTENTION),
    CompensationStrategy.STOP: (["undo c", "undo b", "undo b"], Outcome.NEEDS_ATTENTION),
    CompensationStrategy.COMPLETED: (["undo b", "undo b", "undo a"], Outcome.NEEDS_ATTENTION),
    CompensationStrategy.BEST_EFFORT: (["undo c", "undo b", "undo b", "undo a"], Outcome.ROLLED_BACK),
    CompensationStrategy.UNTIL_SUCCESS: (["undo c"], Outcome.ROLLED_BACK),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_strategy_does_what_it_promises(bench, did, strategy):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await run_step(cp, "b", undo_fails=-1)
        await run_step(cp, "c", fails=-1)

    key, error = await bench.run(main, strategy=strategy, max_attempts=2)
    undone, outcome = STRATEGIES[strategy]
    assert [entry for entry in did.of(key) if entry.startswith("undo")] == undone
    assert error.metadata["rollback"] == outcome


async def test_forever_goes_on_past_any_number_of_attempts(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a", undo_fails=4)
        await run_step(cp, "b", fails=-1)

    key, error = await bench.run(main, strategy=CompensationStrategy.FOREVER, max_attempts=1)
    assert did.of(key)[-5:] == ["undo a"] * 5
    assert error.metadata["rollback"] == "rolled_back"


async def test_compensations_recorded_by_hand_are_deduplicated_and_undone(bench, did):
    async def main(cp: Orchestration) -> None:
        task = Task(key=cp.key, name="a")
        assert await cp.add_compensation_step("undo", task)
        assert not await cp.add_compensation_step("undo", task)
        assert await cp.add_compensation_step("undo", task, dedupe=False)
        raise Refused("enough", 410)

    key, _ = await bench.run(main)
    assert did.of(key) == ["undo a", "undo a"]


async def test_what_comes_after_the_others_waits_until_no_dead_letter_is_left(bench, did):
    async def main(cp: Orchestration) -> None:
        await cp.add_compensation_step("undo", Task(key=cp.key, name="news"), step="news", after_others=True)
        await run_step(cp, "a", undo_fails=1)
        await run_step(cp, "b", fails=-1)

    key, error = await bench.run(main, max_attempts=1)
    assert error.metadata["dead_letters"] == "a"
    assert [entry for entry in did.of(key) if entry.startswith("undo")] == ["undo b", "undo a"]
    act = Target("DeadLetters", "redrive", ActRequest, ActReceipt)
    await bench.ingress.call(act, ActRequest(id=f"{bench.name}:{key}/2", actor="olga"))

    async def closed() -> bool:
        return (await bench.rollback(key)).status is Outcome.ROLLED_BACK

    await eventually(closed, what="closed saga")
    assert [entry for entry in did.of(key) if entry.startswith("undo")] == ["undo b", "undo a", "undo a", "undo news"]


async def test_a_safe_step_keeps_the_order_of_compensation_and_action(bench, did):
    errors: list[str] = []

    async def main(cp: Orchestration) -> str:
        errors.clear()  # an attempt that is replayed begins anew
        task = Task(key=cp.key, name="a")
        call = lambda: ServiceClient(cp.ctx, do_task).call(task)  # noqa: E731 - what a user would write
        safe = SafeStep(cp.saga, "a")
        with pytest.raises(SagaError) as early:
            await safe.execute(call)
        result = await safe.with_compensation("undo", task).execute(call)
        with pytest.raises(SagaError) as twice:
            await safe.execute(call)
        with pytest.raises(SagaError) as late:
            safe.with_compensation("undo", task)
        errors.extend((early.value.message, twice.value.message, late.value.message))
        return result

    key, result = await bench.run(main)
    assert result == "A"
    assert did.of(key) == ["do a", "done a"]
    assert errors == [
        "saga: must register compensation before executing action: a",
        "saga: action already executed: a",
        "saga: cannot register compensation after action execution: a",
    ]


async def test_wrong_steps_are_refused_before_anything_is_done(bench, did):
    messages: list[str] = []

    async def main(cp: Orchestration) -> None:
        task = Task(key=cp.key, name="a")
        wrong: list[Callable[[], Awaitable[Any]]] = [
            lambda: cp.step("a", do_task, task, compensate="nobody"),
            lambda: cp.step("a", do_task, task, compensate="undo", payload={"no": "task"}),
            lambda: cp.parallel(step(cp, "a"), step(cp, "a")),
        ]
        for attempt in wrong:
            with pytest.raises(SagaError) as refused:
                await attempt()
            messages.append(refused.value.message)

    key, result = await bench.run(main)
    assert result is None
    assert did.of(key) == []
    assert "missing compensation handler: nobody" in messages[0]
    assert "does not fit the compensation 'undo'" in messages[1]
    assert "give each step a name of its own" in messages[2]


def test_settings_that_have_no_effect_are_refused():
    async def local(_: str) -> str:
        return ""

    with pytest.raises(ConfigurationError, match="max_duration"):
        Step("a", local, "", timeout=timedelta(seconds=1))
    with pytest.raises(ConfigurationError, match="local runs"):
        Step("a", do_task, Task(key="k", name="a"), config=RunConfig())


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
    await eventually(_truth(lambda: did.count(f"do {key}-child/slow") == 1), what="slow step of the child")
    async with AdminClient(bench.admin_url) as admin:
        await admin.act(invocation, "cancel")
    bench.released.set()

    async def both_undone() -> bool:
        try:
            return (await bench.rollback(key)).status is Outcome.ROLLED_BACK
        except IngressError as error:
            if error.status_code != 404:
                raise
            return False

    await eventually(both_undone, what="rollback of the parent")
    undone = [entry for entry in did.all() if entry.startswith("undo")]
    assert undone == [f"undo {key}-child/slow", f"undo {key}-child/c1", f"undo {key}/a"]

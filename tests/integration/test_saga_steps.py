"""Steps: in parallel, retried, with a time limit, refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    RunConfig,
    SagaConfig,
    Step,
    Target,
)
from perdure.errors import ConfigurationError, IngressError, SagaError
from perdure.retry import RetryPolicy
from tests.integration.saga_bench import Task, do_task, run_step, step, truth, undo_of
from tests.support import eventually

MILLISECONDS_10 = timedelta(milliseconds=10)


async def test_parallel_steps_overlap_and_return_ordered_results(bench, did):
    async def main(cp: Orchestration) -> list[str]:
        # "a" ends only once "c" has started, so sequential steps would never end.
        return await cp.parallel(step(cp, "a", waits_for="c"), step(cp, "b"), step(cp, "c", waits_for="a"))

    key, result = await bench.run(main)
    assert result == ["A", "B", "C"]
    assert sorted(did.of(key)) == ["do a", "do b", "do c", "done a", "done b", "done c"]


async def test_failed_parallel_group_is_compensated_together(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "first")
        await cp.parallel(step(cp, "a", waits_for="b"), step(cp, "b", fails=-1), step(cp, "c", fails=-1))

    key, error = await bench.run(main)
    assert error.message == "step 'b' failed: b is out of order"
    undone = bench.undone(key)
    assert sorted(undone[:3]) == ["undo a", "undo b", "undo c"]
    assert undone[3:] == ["undo first"]
    assert did.of(key).index("done a") < did.of(key).index(undone[0])


async def test_local_parallel_steps_run_together(bench, did):
    async def main(cp: Orchestration) -> list[str]:
        async def local(name: str) -> str:
            did.add(f"do {cp.key}/{name}")
            other = {"x": "y", "y": "x"}[name]
            await eventually(truth(lambda: did.count(f"do {cp.key}/{other}") > 0), what=other)
            return name

        return await cp.parallel(Step("x", local, "x"), Step("y", local, "y"))

    _, result = await bench.run(main)
    assert result == ["x", "y"]


async def test_step_retry_follows_its_policy(bench, did):
    async def main(cp: Orchestration) -> str:
        await run_step(cp, "a", RetryPolicy(initial_interval=MILLISECONDS_10), fails=2)
        await run_step(cp, "b", RetryPolicy(), retry_on={429}, fails=1)
        return "never reached"

    key, error = await bench.run(main)
    assert error.message == "step 'b' failed: b is out of order"
    assert [entry for entry in did.of(key) if entry.startswith("do ")] == ["do a", "do a", "do a", "do b"]


async def test_timed_out_step_is_compensated_after_its_end(bench, did):
    async def main(cp: Orchestration) -> str:
        task = Task(key=cp.key, name="slow", hangs=True)
        return await cp.step("slow", do_task, task, compensate=undo_of(cp, task), timeout=timedelta(milliseconds=100))

    ingress = await bench.serve(main)
    key = str(uuid4())
    run = Target(bench.name, "run", None, object)
    call = asyncio.create_task(ingress.call(run, key=key))

    async def has_rollback() -> bool:
        try:
            return bool(await bench.rollback(key))
        except IngressError as error:
            if error.status_code != 404:
                raise
            return False

    await eventually(has_rollback, what="rollback")
    assert did.of(key) == ["do slow"]
    bench.released.set()
    with pytest.raises(IngressError) as failed:
        await call
    assert (failed.value.status_code, failed.value.metadata["code"]) == (408, "step_timeout")
    assert did.of(key) == ["do slow", "done slow", "undo slow"]


async def test_invalid_step_is_refused_before_it_starts(bench, did):
    messages: list[str] = []

    async def main(cp: Orchestration) -> None:
        task = Task(key=cp.key, name="a")
        wrong: list[Callable[[], Awaitable[Any]]] = [
            lambda: cp.step("a", do_task, task, compensate=cp.saga.compensations.get("undo").bind({"no": "task"})),
            lambda: cp.step("a", do_task, task, compensate=str),  # type: ignore[arg-type]
            lambda: cp.parallel(step(cp, "a"), step(cp, "a")),
        ]
        with pytest.raises(SagaError) as missing:
            cp.add_compensation_step("missing", task)
        messages.append(missing.value.message)
        for attempt in wrong:
            with pytest.raises(SagaError) as refused:
                await attempt()
            messages.append(refused.value.message)

    key, result = await bench.run(main)
    assert result is None
    assert did.of(key) == []
    assert "missing compensation handler: missing" in messages[0]
    assert "does not fit the compensation 'undo'" in messages[1]
    assert "is not a handler" in messages[2]
    assert "give each step a unique name" in messages[3]


async def test_call_and_sleep_record_no_step(bench, did):
    async def main(cp: Orchestration) -> list[str]:
        await cp.sleep(MILLISECONDS_10)
        return [await cp.call(do_task, Task(key=cp.key, name="a")), *(record.step for record in cp.saga.steps)]

    key, result = await bench.run(main)
    assert result == ["A"]
    assert did.of(key) == ["do a", "done a"]


async def test_call_reaches_keyed_handler(bench, did):
    name = f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> str:
        return cp.key

    async def main(cp: Orchestration) -> str:
        return await cp.call(Target(name, "run", None, str), key="k1")

    _, result = await bench.run(main, bench.orchestration(name, child, SagaConfig()))
    assert result == "k1"


def test_settings_that_have_no_effect_are_refused():
    async def local(_: str) -> str:
        return ""

    with pytest.raises(ConfigurationError, match="max_duration"):
        Step("a", local, "", timeout=timedelta(seconds=1))
    with pytest.raises(ConfigurationError, match="local actions"):
        Step("a", do_task, Task(key="k", name="a"), config=RunConfig())


async def test_step_accepts_handler_function(restate, did):
    name = f"Shop{uuid4().hex[:8]}"
    stock, sales = DataPlaneService(f"{name}Stock"), ControlPlaneService(name)

    @stock.handler()
    async def take(ctx: DataPlaneContext, part: str) -> str:
        did.add(f"take {part}")
        return part.upper()

    @sales.main()
    async def sell(cp: Orchestration, part: str) -> list[str]:
        return [await cp.step("one", take, part), *await cp.parallel(Step("two", take, part))]

    env = await restate.serve(stock, sales)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(sell, "bolt", key=name) == ["BOLT", "BOLT"]


def test_handler_step_takes_timeout_but_no_config():
    stock = DataPlaneService("Stock")

    @stock.handler()
    async def take(ctx: DataPlaneContext, part: str) -> str:
        return part

    assert Step("a", take, "bolt", timeout=timedelta(seconds=1)).action == Target("Stock", "take", str, str)
    with pytest.raises(ConfigurationError, match="config is for local actions"):
        Step("a", take, "bolt", config=RunConfig())

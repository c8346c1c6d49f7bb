"""Compensation strategies, the pivot and ``after_others``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast
from uuid import uuid4

import pytest

from perdure import CompensationStrategy, Orchestration, Step, Target
from perdure.errors import IngressError, TerminalError
from perdure.saga.messages import ActionReceipt, DeadLetterActionRequest
from perdure.saga.status import RollbackState
from tests.integration.saga_bench import Task, do_task, run_step, step, undo_of
from tests.support import eventually


async def test_step_past_pivot_is_retried(bench, did):
    async def main(cp: Orchestration) -> str:
        await run_step(cp, "a")
        cp.pivot()
        return await cp.step("b", do_task, Task(key=cp.key, name="b", fails=2))

    key, result = await bench.run(main)
    assert result == "B"
    assert did.of(key) == ["do a", "done a", "do b", "do b", "do b", "done b"]


async def test_failure_past_pivot_becomes_dead_letter(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        cp.pivot()
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


STRATEGIES: dict[CompensationStrategy, tuple[list[str], RollbackState]] = {
    # c's action fails, b's compensation always fails (two attempts), a's succeeds
    CompensationStrategy.ALL: (["undo c", "undo b", "undo b", "undo a"], RollbackState.NEEDS_ATTENTION),
    CompensationStrategy.STOP: (["undo c", "undo b", "undo b"], RollbackState.NEEDS_ATTENTION),
    CompensationStrategy.COMPLETED: (["undo b", "undo b", "undo a"], RollbackState.NEEDS_ATTENTION),
    CompensationStrategy.BEST_EFFORT: (["undo c", "undo b", "undo b", "undo a"], RollbackState.ROLLED_BACK),
    CompensationStrategy.UNTIL_SUCCESS: (["undo c"], RollbackState.ROLLED_BACK),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_strategy_selects_compensations(bench, did, strategy):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await run_step(cp, "b", undo_fails=-1)
        await run_step(cp, "c", fails=-1)

    key, error = await bench.run(main, strategy=strategy, max_attempts=2)
    undone, outcome = STRATEGIES[strategy]
    assert bench.undone(key) == undone
    assert error.metadata["rollback"] == outcome


REFUSALS: dict[str, Callable[[Orchestration], Step[Any, Any]]] = {
    "payload": lambda cp: Step("p", do_task, Task(key=cp.key, name="p"), compensate=undo_of(cp, cast("Any", 7))),
    "unbound": lambda cp: Step("p", do_task, Task(key=cp.key, name="p"), compensate=cast("Any", "undo")),
    "name": lambda cp: Step("", do_task, Task(key=cp.key, name="p"), compensate=undo_of(cp, Task(key="", name=""))),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_completed_compensates_only_started_steps(bench, did, refusal):
    plans = {str(uuid4()): (place, caught) for place in range(3) for caught in (False, True)}

    async def main(cp: Orchestration) -> None:
        place, caught = plans[cp.key]
        await run_step(cp, "first")
        group = [step(cp, "a"), step(cp, "b")]
        group.insert(place, REFUSALS[refusal](cp))
        try:
            await cp.parallel(*group)
        except TerminalError:
            if not caught:
                raise
        await run_step(cp, "second")
        await run_step(cp, "last", fails=-1)

    ingress = await bench.serve(main, strategy=CompensationStrategy.COMPLETED)

    async def play(key: str) -> None:
        with pytest.raises(IngressError):
            await ingress.call(Target(bench.name, "run", None, object), key=key)

    await asyncio.gather(*map(play, plans))
    for key, (_, caught) in plans.items():
        assert bench.undone(key) == (["undo second", "undo first"] if caught else ["undo first"])


async def test_forever_ignores_max_attempts(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a", undo_fails=4)
        await run_step(cp, "b", fails=-1)

    key, error = await bench.run(main, strategy=CompensationStrategy.FOREVER, max_attempts=1)
    assert did.of(key)[-5:] == ["undo a"] * 5
    assert error.metadata["rollback"] == "rolled_back"


async def test_after_others_waits_for_dead_letters(bench, did):
    async def main(cp: Orchestration) -> None:
        cp.add_compensation_step("undo", Task(key=cp.key, name="last"), step="last", after_others=True)
        await run_step(cp, "a", undo_fails=1)
        await run_step(cp, "b", fails=-1)

    key, error = await bench.run(main, max_attempts=1)
    assert error.metadata["dead_letters"] == "a"
    assert bench.undone(key) == ["undo b", "undo a"]
    act = Target("DeadLetters", "redrive", DeadLetterActionRequest, ActionReceipt)
    await bench.ingress.call(act, DeadLetterActionRequest(id=f"{bench.name}:{key}/2", actor="olga"))

    async def closed() -> bool:
        return (await bench.rollback(key)).status is RollbackState.ROLLED_BACK

    await eventually(closed, what="closed saga")
    assert bench.undone(key) == ["undo b", "undo a", "undo a", "undo last"]

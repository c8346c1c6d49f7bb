"""Compensations that the orchestration records by hand, with `add_compensation_step` and `SafeStep`."""

from __future__ import annotations

import pytest

from perdure import Orchestration, SafeStep, ServiceClient
from perdure.errors import Refused, SagaError
from tests.integration.saga_bench import Task, do_task, undo_of


async def test_compensations_recorded_by_hand_are_deduplicated_and_undone(bench, did):
    async def main(cp: Orchestration) -> None:
        task = Task(key=cp.key, name="a")
        assert cp.add_compensation_step("undo", task)
        assert not cp.add_compensation_step("undo", task)
        assert cp.add_compensation_step("undo", task, dedupe=False)
        raise Refused("enough", 410)

    key, _ = await bench.run(main)
    assert did.of(key) == ["undo a", "undo a"]


async def test_a_safe_step_keeps_the_order_of_compensation_and_action(bench, did):
    errors: list[str] = []

    async def main(cp: Orchestration) -> str:
        errors.clear()  # an attempt that is replayed begins anew
        task = Task(key=cp.key, name="a")
        call = lambda: ServiceClient(cp.ctx, do_task).call(task)  # noqa: E731 - what a user would write
        safe = SafeStep(cp.saga, "a")
        with pytest.raises(SagaError) as early:
            await safe.execute(call)
        result = await safe.with_compensation(undo_of(cp, task)).execute(call)
        with pytest.raises(SagaError) as twice:
            await safe.execute(call)
        with pytest.raises(SagaError) as late:
            safe.with_compensation(undo_of(cp, task))
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

"""Manual compensations with `add_compensation_step` and `SafeStep`."""

from __future__ import annotations

import pytest

from perdure import Orchestration, SafeStep, ServiceClient
from perdure.errors import Refused, SagaError
from tests.integration.saga_bench import Task, do_task, undo_of


async def test_equal_manual_compensations_run_once(bench, did):
    async def main(cp: Orchestration) -> None:
        task = Task(key=cp.key, name="a")
        assert cp.add_compensation_step("undo", task)
        assert not cp.add_compensation_step("undo", task)
        assert cp.add_compensation_step("undo", task, dedupe=False)
        raise Refused("enough", 410)

    key, _ = await bench.run(main)
    assert did.of(key) == ["undo a", "undo a"]


async def test_safe_step_enforces_order(bench, did):
    errors: list[str] = []

    async def main(cp: Orchestration) -> str:
        errors.clear()  # a replay runs this again
        task = Task(key=cp.key, name="a")
        call = lambda: ServiceClient(cp.ctx, do_task).call(task)  # noqa: E731 - as a user would write it
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

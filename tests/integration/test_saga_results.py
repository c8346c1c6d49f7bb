"""Rollback of a saga whose result cannot be serialised."""

from __future__ import annotations

from uuid import uuid4

import pytest
import restate as sdk

from perdure import ControlPlaneService, Orchestration, SagaConfig, ServiceClient, Target
from perdure.errors import IngressError
from perdure.status import StatusData
from tests.integration.saga_bench import QUICK, Task, run_step, undo_task
from tests.integration.test_saga_kills import rolled_back

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")


async def nothing(cp: Orchestration) -> None:
    """Do nothing."""


async def test_invalid_result_rolls_back_saga(bench, did):
    mistaken = ControlPlaneService(f"Mistaken{uuid4().hex[:8]}", saga=SagaConfig(**QUICK))

    @mistaken.compensation()
    async def undo(ctx: sdk.Context, task: Task) -> None:
        await ServiceClient(ctx, undo_task).call(task)

    @mistaken.main(steps=1)
    async def run(cp: Orchestration) -> list[int]:
        await run_step(cp, "a")
        return {"a": 1}

    await bench.serve(nothing, mistaken)
    key = str(uuid4())
    with pytest.raises(IngressError, match=r"cannot write a value of class .* as list") as failed:
        await bench.ingress.call(Target(mistaken.name, "run", None, object), key=key)
    assert failed.value.metadata["rollback_undone"] == "a"
    await rolled_back(bench, f"{mistaken.name}:{key}")
    assert did.of(key) == ["do a", "done a", "undo a"]
    status = await bench.ingress.call(Target(mistaken.name, "status", None, StatusData), key=key)
    assert status.phase == "rolled_back"
    assert "cannot write a value" in status.error

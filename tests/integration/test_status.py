"""Status of a workflow: written by its main handler, read by all handlers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import IngressClient, StatusData, WorkflowStatus, handler, update_status
from perdure.errors import IngressError
from perdure.testing.served import Mode
from tests.support import Recording

STATUS = StatusData(
    phase="reserving",
    progress=0.5,
    current_step="hotel",
    completed_steps=["flight"],
    metadata={"seats": 2, "notes": ["é", None]},
)


def flow_of(did: Recording) -> tuple[sdk.Workflow, dict[str, Any]]:
    flow = sdk.Workflow("StatusFlow")

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext) -> StatusData:
        did.add("attempt")
        await ctx.sleep(timedelta(milliseconds=1))
        first = await update_status(ctx, STATUS)
        await update_status(ctx, StatusData(phase="other"), key="other_status")
        await ctx.sleep(timedelta(milliseconds=1))  # the engine rejects a replay with another value
        await ctx.sleep(timedelta(milliseconds=1))
        return first

    @handler(flow, "shared")
    async def status(ctx: sdk.WorkflowSharedContext) -> StatusData | None:
        return await WorkflowStatus(ctx).get_status()

    @handler(flow, "shared")
    async def other(ctx: sdk.WorkflowSharedContext) -> StatusData | None:
        return await WorkflowStatus(ctx, "other_status").get_status()

    @handler(flow, "shared")
    async def write(ctx: sdk.WorkflowSharedContext) -> None:
        did.add("write")
        await update_status(ctx, STATUS)  # type: ignore[arg-type] # the mistake under test

    @handler(flow, "shared")
    async def overshoot(ctx: sdk.WorkflowSharedContext, progress: float) -> None:
        did.add("overshoot")
        await update_status(ctx, STATUS.model_copy(update={"progress": progress}))  # type: ignore[arg-type] # as above

    return flow, {function.__name__: function for function in (run, status, other, write, overshoot)}


async def test_update_and_read_status(restate, did):
    flow, to = flow_of(did)
    env = await restate.serve(flow)
    async with IngressClient(env.ingress) as ingress:
        key, start = str(uuid4()), datetime.now(UTC)
        assert await ingress.call(to["status"], key=key) is None
        written = await ingress.call(to["run"], key=key)
        assert written == STATUS.model_copy(update={"updated_at": written.updated_at})
        assert written.updated_at is not None
        assert start - timedelta(seconds=1) <= written.updated_at <= datetime.now(UTC) + timedelta(seconds=1)
        assert await ingress.call(to["status"], key=key) == written
        other = await ingress.call(to["other"], key=key)
        assert other is not None
        assert other.phase == "other"
    if restate.mode is not Mode.HTTP2:
        assert did.count("attempt") > 3, "the handler was not replayed"


async def test_reject_invalid_status(restate, did):
    flow, to = flow_of(did)
    env = await restate.serve(flow)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        with pytest.raises(IngressError, match="Set called from read-only context: StatusFlow/write") as shared:
            await ingress.call(to["write"], key=key)
        assert shared.value.status_code == 400
        for count, progress in enumerate((-0.1, 1.1, float("nan")), start=1):
            with pytest.raises(IngressError, match=rf"progress must be from 0 to 1, got {progress}") as wrong:
                await ingress.call(to["overshoot"], progress, key=key)
            assert (wrong.value.status_code, wrong.value.metadata["field"]) == (400, "progress")
            assert did.count("overshoot") == count
        assert await ingress.call(to["status"], key=key) is None


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan"), "half"])
def test_reject_progress_out_of_range(progress):
    with pytest.raises(ValueError, match="progress"):
        StatusData(phase="x", progress=progress)

"""A kill -9 while a rollback waits for the next attempt of a compensation, whose dependency is down for hours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from perdure import IngressClient
from perdure.engine.admin import AdminClient
from perdure.saga.messages import StepStatus, rollback_status
from perdure.testing import RestateServer
from tests.integration import outage_process
from tests.integration.own_engine.saga_process import SagaProcess
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")

SCALE = 20  # a day takes over an hour, the longest delay three seconds


@pytest.fixture
async def process(admin: AdminClient, tmp_path: Path) -> AsyncIterator[SagaProcess]:
    settings = {"PERDURE_TIME_SCALE": str(SCALE)}
    async with SagaProcess.serving(outage_process.__name__, tmp_path, admin, **settings) as process:
        yield process


@pytest.mark.parametrize("killed", ["services", "engine"])
async def test_compensation_retries_continue_after_kill(
    engine: RestateServer, process: SagaProcess, tmp_path: Path, killed: str
):
    key = str(uuid4())
    async with IngressClient(engine.ingress) as ingress:
        await ingress.send(outage_process.book, key=key)

        async def waiting(attempts: int) -> StepStatus | None:
            status = await ingress.call(rollback_status, key=f"OutageOrders:{key}")
            (step,) = status.steps
            return step if step.attempts >= attempts and step.next_attempt_at is not None else None

        await eventually(lambda: process.count("visits") > 0, what="attempt of the compensation")
        before = await eventually(lambda: waiting(2), what="retried compensation")
        if killed == "services":
            process.kill()
            await process.start()
        else:
            await engine.engine.kill()
            await engine.engine.start()
        after = await eventually(lambda: waiting(before.attempts + 2), what="further attempts after the restart")
        assert (after.trying_since, after.state) == (before.trying_since, "pending")
        (tmp_path / "repaired").touch()

        async def undone() -> bool:
            return (await ingress.call(rollback_status, key=f"OutageOrders:{key}")).steps[0].state == "undone"

        await eventually(undone, what="compensation after the outage")
    assert process.count("effects") == 1

"""Recovery of calls whose service was down."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from perdure import DataPlaneContext, DataPlaneService, IngressClient, Target
from perdure._runtime.dispatch import LONGEST_INTERVAL
from perdure.engine.admin import AdminClient, sql_text
from perdure.serving import build_app
from perdure.testing.served import Mode, ServedApp
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

RETRIES = 11  # after 11 failures, the delay has reached its limit


def service() -> DataPlaneService[Any, Any]:
    depot = DataPlaneService(f"Depot{uuid4().hex[:8]}", public=True)

    @depot.handler()
    async def take(ctx: DataPlaneContext) -> str:
        return "taken"

    return depot


async def test_call_waits_seconds_after_outage(restate_servers):
    server = restate_servers.for_mode(Mode.HTTP2)
    depot = service()
    take = Target(depot.name, "take", None, str)
    async with AdminClient(server.admin) as admin, IngressClient(server.ingress) as ingress:
        with ServedApp(build_app(depot)) as app:
            await admin.register(app.url)
            (deployment,) = [each for each in await admin.deployments() if depot.name in str(each["services"])]
        key = str(uuid4())
        invocation = await ingress.send(take, idempotency_key=key)

        async def waiting() -> dict[str, Any] | None:
            rows = await admin.query(
                "select retry_count, last_start_at, next_retry_at from sys_invocation_state "
                f"where id = {sql_text(invocation)} and retry_count >= {RETRIES} and next_retry_at is not null"
            )
            return rows[0] if rows else None

        row = await eventually(waiting, what="late retry")
        delay = datetime.fromisoformat(row["next_retry_at"]) - datetime.fromisoformat(row["last_start_at"])
        assert delay <= LONGEST_INTERVAL + timedelta(seconds=3)  # jitter, and a late failure on a busy machine
        with ServedApp(build_app(depot)) as back:
            await admin.move_deployment(deployment["id"], back.url)
            assert await ingress.call(take, idempotency_key=key) == "taken"
            await admin.remove_deployment(deployment["id"])

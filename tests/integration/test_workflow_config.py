"""Effects of WorkflowConfig in the engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    ControlPlaneService,
    IngressClient,
    Orchestration,
    State,
    StatusData,
    Target,
    WorkflowConfig,
    handler,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError
from perdure.retry import RetryPolicy
from perdure.state import monitor_state_size
from perdure.testing.plugin import RestateServers
from perdure.testing.served import Mode, Restate
from perdure.testing.server import RestateServer
from tests.support import eventually

CONFIG = WorkflowConfig(
    state_retention=timedelta(days=45),
    journal_retention=timedelta(hours=2),
    inactivity_timeout=timedelta(seconds=90),
    abort_timeout=timedelta(minutes=3),
    retry=RetryPolicy(max_attempts=7),
    on_exhausted="kill",
)


@pytest.fixture(scope="module")
def tidy(restate_servers: RestateServers) -> Iterator[RestateServer]:
    """An engine that purges every second instead of every hour."""
    settings = {"RESTATE_WORKER__CLEANUP_INTERVAL": "500ms"}
    with RestateServer(install_dir=restate_servers.install_dir, settings=settings) as server:
        yield server


def flow_of(name: str, config: WorkflowConfig) -> tuple[ControlPlaneService, Target[None, str]]:
    service = ControlPlaneService(name, config=config)

    @service.main()
    async def run(cp: Orchestration) -> str:
        await State(cp.ctx, "note", str).set("kept")
        return "done"

    return service, Target(name, "run", None, str)


@pytest.mark.restate_modes("http2")
async def test_engine_receives_workflow_settings(restate):
    service, _ = flow_of("KeptFlow", CONFIG)
    plain = sdk.Workflow("PlainFlow", **CONFIG.options())

    @handler(plain, "main", **CONFIG.main_options())
    async def run(ctx: sdk.WorkflowContext) -> None:
        """Do nothing."""

    env = await restate.serve(service, plain)
    async with AdminClient(env.admin) as admin:
        known = {each["name"]: each for each in await admin.services()}
    for name in ("KeptFlow", "PlainFlow"):
        told = known[name]
        found: dict[str, Any] = {
            "workflow": told["workflow_completion_retention"],
            "idempotency": told["idempotency_retention"],
            "journal": told["journal_retention"],
            "inactivity": told["inactivity_timeout"],
            "abort": told["abort_timeout"],
            "attempts": told["retry_policy"]["max_attempts"],
            "then": told["retry_policy"]["on_max_attempts"],
        }
        assert found == {
            "workflow": "45d",
            "idempotency": "45d",
            "journal": "2h",
            "inactivity": "1m 30s",
            "abort": "3m",
            "attempts": 7,
            "then": "Kill",
        }


async def test_purge_workflow_after_retention(tidy):
    restate = Restate(tidy, Mode.HTTP2)
    short, run_short = flow_of("ShortFlow", WorkflowConfig().with_auto_cleanup(timedelta(seconds=1)))
    long, run_long = flow_of("LongFlow", WorkflowConfig.production())
    env = await restate.serve(short, long)
    key = str(uuid4())
    try:
        async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
            for each in (run_long, run_short):
                assert await ingress.call(each, key=key) == "done"
                assert await ingress.output(each, key=key) == "done"

            async def left(service: str) -> tuple[int, int]:
                rows = await admin.query(
                    f"select id from sys_invocation where target_service_name = {sql_text(service)} and "
                    f"target_service_key = {sql_text(key)} and target_handler_name = 'run'"
                )
                entries = await admin.query(
                    f"select key from state where service_name = {sql_text(service)} and service_key = {sql_text(key)}"
                )
                return len(rows), len(entries)

            async def gone() -> bool:
                return await left("ShortFlow") == (0, 0)

            await eventually(gone, what="end of the retention")
            rows, entries = await left("LongFlow")
            assert rows == 1
            assert entries >= 1
            with pytest.raises(IngressError) as forgotten:
                await ingress.output(run_short, key=key)
            assert forgotten.value.status_code == 404
            status = Target("LongFlow", "status", None, StatusData)
            assert (await ingress.call(status, key=key)).phase == "completed"
    finally:
        await restate.close()


async def test_warn_and_refuse_large_state(restate, caplog):
    caplog.set_level(logging.WARNING, "perdure.workflow")
    flow = sdk.Workflow("GrowingFlow")
    config = WorkflowConfig(max_state_size=1000)

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext, sizes: list[int]) -> list[int]:
        measured = []
        for number, size in enumerate(sizes):
            await State(ctx, f"part{number}", str).set("é" * size)
            measured.append(await monitor_state_size(ctx, config))
            await ctx.sleep(timedelta(milliseconds=1))
        return measured

    @handler(flow, "shared")
    async def measure(ctx: sdk.WorkflowSharedContext) -> int:
        return await monitor_state_size(ctx, config)

    env = await restate.serve(flow)
    key = str(uuid4())

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if "workflow.state_size" in record.getMessage()]

    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(measure, key=key) == 0
        # Each entry: 5 bytes for the name, 2 for quotation marks, 2 per letter.
        assert await ingress.call(run, [100, 100], key=key) == [207, 414]
        assert await ingress.call(measure, key=key) == 414
        assert warnings() == []
        with pytest.raises(IngressError) as large:
            await ingress.call(run, [400, 100], key=f"{key}/2")
        assert (large.value.status_code, large.value.code) == (413, "state_too_large")
        assert large.value.message == (
            "workflow state size (1014 bytes) exceeds configured maximum (1000 bytes); the largest entry is 'part0' "
            "with 807 bytes"
        )
    assert len(warnings()) == 1, "once, not at each replay"
    assert "size=807 maximum=1000 largest='part0' share=0.81" in warnings()[0]

"""Sampling: the engine applies the setting, and services follow the engine."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from perdure._runtime.ports import free_ports
from perdure.engine import EngineConfig, EngineProcess, locate_engine
from perdure.engine.admin import AdminClient
from perdure.observability.tracing_setup import engine_tracing
from tests.support import eventually
from tests.system.observability.conftest import defective_service
from tests.system.observability.receiver import TraceReceiver

SAMPLED = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.timeout(90)
async def test_trace_is_sampled_everywhere_or_nowhere(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    ingress, admin, node = free_ports(3)
    with TraceReceiver() as receiver:
        shared = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        none = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
        config = EngineConfig(
            data_dir=tmp_path / "data",
            ingress_port=ingress,
            admin_port=admin,
            node_port=node,
            partitions=1,
            extra=engine_tracing({**shared, **none}),
        )
        engine = EngineProcess(locate_engine(pytestconfig.rootpath / ".local" / "engine").path, config)
        follows = {"OTEL_TRACES_SAMPLER": "parentbased_always_off", "OTEL_SERVICE_NAME": "reports"}
        async with defective_service(tmp_path, **shared, **follows) as port:
            try:
                await engine.start()
                async with AdminClient(config.admin_url) as client:
                    await client.register(f"http://127.0.0.1:{port}")
                async with httpx.AsyncClient(trust_env=False, base_url=config.ingress_url) as caller:
                    for number in range(5):
                        (await caller.post("/Reports/order", json=number)).raise_for_status()
                    parent = f"00-{SAMPLED}-00f067aa0ba902b7-01"
                    answer = await caller.post("/Reports/order", json=5, headers={"traceparent": parent})
                    answer.raise_for_status()

                async def both_sent() -> bool:
                    return {span.service for span in receiver.spans()} == {"Restate", "reports"}

                await eventually(both_sent, what="spans of engine and service")
                assert {span.trace_id for span in receiver.spans()} == {SAMPLED}
            finally:
                await engine.kill()

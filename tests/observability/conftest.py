from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from perdure.engine import locate_engine
from services.launcher.platform import Platform
from services.launcher.prometheus import Prometheus, locate_prometheus
from services.launcher.receiver import TraceReceiver
from services.launcher.settings import PlatformSettings
from services.launcher.stage import Stage, stage_environment
from services.launcher.topology import Topology


@dataclass
class Observed:
    """A platform that is looked at.

    Args:
        stage: Where scenarios are played.
        receiver: Where its spans go.
        prometheus: What scrapes it; None where there is none.
    """

    stage: Stage
    receiver: TraceReceiver
    prometheus: Prometheus | None


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def observed(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Observed]:
    """A platform with fresh data on free ports, which sends its spans to a receiver."""
    engine = locate_engine(pytestconfig.rootpath / ".local" / "engine")
    topology = Topology.on_free_ports(tmp_path_factory.mktemp("observed"), PlatformSettings())
    with TraceReceiver() as receiver:
        environment = {
            **stage_environment(os.environ),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            # An approval's first stage ends after two thirds of it.
            "PERDURE_ORCHESTRATOR_APPROVAL_TIMEOUT": "PT18S",
            "PERDURE_APPROVALS_SENTINEL_INTERVAL": "PT0.5S",
        }
        platform = Platform(topology, engine, tell=print, environment=environment, console=True)
        binary = locate_prometheus(os.environ, pytestconfig.rootpath / ".local")
        prometheus = binary and Prometheus(binary, topology, tmp_path_factory.mktemp("prometheus") / "it", shorten=60)
        try:
            await platform.start()
            if prometheus is not None:
                await prometheus.start()
            async with Stage.on(platform) as stage:
                yield Observed(stage, receiver, prometheus)
        finally:
            if prometheus is not None:
                await prometheus.stop()
            await platform.stop(asyncio.Event())

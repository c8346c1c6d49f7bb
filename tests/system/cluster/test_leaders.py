"""Alert for partitions without a leader, after the loss of two of three engine nodes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from perdure.engine import LocatedEngine
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from services.runtime.trusted_keys import make_trusted_keys
from tests.support import eventually
from tests.system.cluster.nodes import EngineCluster, node_configs
from tests.system.observability.prometheus import Prometheus, locate_prometheus

ALERT = "PerdurePartitionsWithoutLeader"


@pytest.mark.timeout(120)
async def test_alert_on_partitions_without_leader(engine: LocatedEngine, tmp_path: Path) -> None:
    settings = PlatformSettings.read()
    binary = locate_prometheus(os.environ, settings.local_dir)
    if binary is None:
        pytest.skip("there is no Prometheus: make prometheus")
    topology = Topology.on_free_ports(tmp_path, settings)
    make_trusted_keys(topology, {})  # the nodes' key
    cluster = EngineCluster(engine, node_configs(topology))
    ports = [node.config.node_port for node in cluster.nodes]
    prometheus = Prometheus(binary, topology, tmp_path / "prometheus", shorten=120, node_ports=ports)

    async def all_led() -> bool:
        values = await prometheus.query(
            "count(up == 1) == 3 and max(restate_num_partitions) == sum(restate_num_active_partition_leaders)"
        )
        return bool(values) and ALERT not in await prometheus.firing()

    async def alerted() -> bool:
        return ALERT in await prometheus.firing()

    try:
        await cluster.start()
        await prometheus.start()
        await eventually(all_led, what="leader of each partition", within=40)
        busiest = await cluster.busiest()
        lost = [busiest, (busiest + 1) % 3]
        await asyncio.gather(*(cluster.nodes[index].kill() for index in lost))
        await eventually(alerted, what=f"alert {ALERT}", within=30)
    finally:
        await prometheus.stop()
        await cluster.kill()

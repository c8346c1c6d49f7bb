"""`python -m tests.system cluster`: book trips on three engine nodes while one is killed and another is stopped."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Final

from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from perdure.observability.tracing_setup import engine_tracing
from services.contracts import trips
from services.runtime.approval_audit import unapproved
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.system.cluster.nodes import EngineCluster, Snapshots, node_configs
from tests.system.scenarios.harness import Harness, harness_environment
from tests.system.scenarios.load import Stream
from tests.system.scenarios.platforms import conclude, play_on, run_isolated

LONGEST_PAUSE: Final = timedelta(seconds=30)
"""Longest permitted time without a confirmed trip after the loss of a node."""

_STEADY: Final = 40
_AFTER: Final = 60


def try_cluster(settings: PlatformSettings, terminal: Terminal, snapshots: Snapshots | None = None) -> int:
    """Run the cluster test on a separate platform with fresh data.

    Args:
        settings: Settings with the folder of restate-server.
        terminal: Receives the output.
        snapshots: Object store for the nodes' snapshots; None disables snapshots.

    Returns:
        The exit code: 0 if the audit passes, else 1; 128 plus the signal's number after a signal.

    Raises:
        PerdureError: The platform cannot run. Its data and logs are kept.
    """
    return run_isolated(
        "cluster", settings, terminal, lambda topology, engine: _try(topology, engine, terminal, snapshots)
    )


async def _try(topology: Topology, engine: LocatedEngine, terminal: Terminal, snapshots: Snapshots | None) -> int:
    cluster = EngineCluster(engine, node_configs(topology, snapshots, engine_tracing(os.environ)))
    platform = Platform(topology, cluster, report=terminal.say, environment=harness_environment(os.environ))
    began = time.monotonic()

    async def play() -> list[str]:
        terminal.say(f"three nodes and the services are up after {time.monotonic() - began:.1f} s")
        return await _play(platform, cluster, terminal)

    problems = await play_on(platform, play, terminal)
    return await conclude(topology, problems, terminal)


async def _play(platform: Platform, cluster: EngineCluster, terminal: Terminal) -> list[str]:
    """Inject two faults while trips are booked; return the problems."""
    problems: list[str] = []
    await cluster.until_known(trips.book.service)
    async with Stream.on("cluster", cluster.ingress_urls) as stream:
        await stream.flow(_STEADY)  # warm-up
        began = time.monotonic()
        await stream.flow(_STEADY)
        steady = stream.pause(began, time.monotonic())
        terminal.say(f"steady: at most {steady:.2f} s between two confirmed trips")
        for fault in ("kill -9", "stop"):
            index = await cluster.busiest()
            node, leads = cluster.nodes[index], (await cluster.leaders())[index]
            began = time.monotonic()
            await (node.kill() if fault == "kill -9" else node.stop())
            await stream.flow(_AFTER, within=120)
            pause = stream.pause(began, time.monotonic())
            terminal.say(
                f"{fault} {node.config.node_name}, which led {leads} partitions: "
                f"no trip was confirmed for {pause:.2f} s, then {_AFTER} on two nodes"
            )
            if pause > LONGEST_PAUSE.total_seconds():
                problems.append(f"after {fault}, no trip was confirmed for {pause:.1f} s")
            began = time.monotonic()
            await node.start()
            back = time.monotonic() - began
            await stream.flow(_STEADY)
            terminal.say(f"{node.config.node_name} is back after {back:.1f} s, and trips continue")
    terminal.say(f"all {stream.confirmed} booked trips are confirmed")
    async with Harness.on(platform) as harness:
        await harness.until_quiet()
    return [*problems, *await unapproved(platform)]

"""`perdure-platform cluster`: trips are booked on three engine nodes while one is killed, and another is stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure.engine import LocatedEngine
from services.contracts import trips
from services.data_plane.audit import audit
from services.launcher.cluster import EngineCluster, Snapshots, node_configs
from services.launcher.interrupts import Interrupted, Interrupts, raising_interrupts
from services.launcher.platform import Platform
from services.launcher.reports import show_audit
from services.launcher.run import find_engine
from services.launcher.settings import PlatformSettings
from services.launcher.stage import Stage, stage_environment
from services.launcher.stream import Stream
from services.launcher.terminal import Terminal
from services.launcher.topology import Topology

LONGEST_PAUSE: Final = timedelta(seconds=30)
"""How long no trip may be confirmed after a node went: noticing takes the engine seconds, a busy machine more."""

_STEADY: Final = 40
_AFTER: Final = 60


def try_cluster(settings: PlatformSettings, terminal: Terminal, snapshots: Snapshots | None = None) -> int:
    """Play the trial on a platform of its own, with fresh data on free ports.

    Args:
        settings: Where npm's restate-server is, or goes.
        terminal: Where to show it.
        snapshots: An object store for the nodes' snapshots; without one, they make none.

    Returns:
        The exit code: 0 when nothing is lost, 1 when something is, 128 and the signal's number when it was stopped.

    Raises:
        PerdureError: The platform can't be run. Its data and logs are kept.
    """
    try:
        with raising_interrupts():
            engine = find_engine(Topology.from_settings(settings).engine_dir, terminal)
    except Interrupted as interrupt:
        return interrupt.exit_code
    home = Path(tempfile.mkdtemp(prefix="perdure-cluster-"))
    keep = True
    try:
        code = asyncio.run(_try(Topology.on_free_ports(home, settings), engine, terminal, snapshots))
        keep = code == 1
    finally:
        if keep:
            terminal.say(f"data and logs are kept in {home}")
        else:
            shutil.rmtree(home)
    return code


async def _try(topology: Topology, engine: LocatedEngine, terminal: Terminal, snapshots: Snapshots | None) -> int:
    cluster = EngineCluster(engine, node_configs(topology, snapshots))
    platform = Platform(topology, cluster, tell=terminal.say, environment=stage_environment(os.environ))
    interrupts = Interrupts()
    with interrupts.listening():
        try:
            began = time.monotonic()
            await interrupts.unless_asked(platform.start())
            terminal.say(f"three nodes and the services are up after {time.monotonic() - began:.1f} s")
            problems = await interrupts.unless_asked(_play(platform, cluster, terminal))
        except Interrupted as interrupt:
            return interrupt.exit_code
        finally:
            await platform.stop(interrupts.hurry)
    report = await audit(topology.database_url, settled=True)
    show_audit(report, terminal)
    for problem in problems:
        terminal.say(problem, "bold red")
    good = report.ok and not problems
    terminal.say(
        "nothing lost, nothing done twice" if good else "NOT everything holds", "bold green" if good else "red"
    )
    return 0 if good else 1


async def _play(platform: Platform, cluster: EngineCluster, terminal: Terminal) -> list[str]:
    """Strike two blows while trips are booked; return what does not hold."""
    problems: list[str] = []
    await cluster.until_known(trips.book.service)
    async with Stream.on("cluster", cluster.ingress_urls) as stream:
        await stream.flow(_STEADY)  # the first ones warm everything up
        began = time.monotonic()
        await stream.flow(_STEADY)
        steady = stream.pause(began, time.monotonic())
        terminal.say(f"steady: at most {steady:.2f} s between two confirmed trips")
        for what in ("kill -9", "stop"):
            index = await cluster.busiest()
            node, leads = cluster.nodes[index], (await cluster.leaders())[index]
            began = time.monotonic()
            await (node.kill() if what == "kill -9" else node.stop())
            await stream.flow(_AFTER, within=120)
            pause = stream.pause(began, time.monotonic())
            terminal.say(
                f"{what} {node.config.node_name}, which led {leads} partitions: "
                f"no trip was confirmed for {pause:.2f} s, then {_AFTER} were, on two nodes"
            )
            if pause > LONGEST_PAUSE.total_seconds():
                problems.append(f"after {what}, no trip was confirmed for {pause:.1f} s")
            began = time.monotonic()
            await node.start()
            back = time.monotonic() - began
            await stream.flow(_STEADY)
            terminal.say(f"{node.config.node_name} is back after {back:.1f} s, and trips go on")
    terminal.say(f"{stream.confirmed} trips were booked, and all are confirmed")
    async with Stage.on(platform) as stage:
        await stage.until_quiet()
    return problems

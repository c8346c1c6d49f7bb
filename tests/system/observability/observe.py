"""Plays the scenarios, then prints traces of trips and all dashboard values: ``python -m tests.system observe``."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.support import eventually
from tests.system.observability.panels import panel_lines
from tests.system.observability.prometheus import Prometheus, locate_prometheus
from tests.system.observability.receiver import TraceReceiver
from tests.system.observability.traces import TraceTree, lines, linked_to, trace_of
from tests.system.scenarios.dead_letters import HOTEL
from tests.system.scenarios.harness import Harness, harness_environment
from tests.system.scenarios.orders import order
from tests.system.scenarios.platforms import play_on, run_isolated
from tests.system.scenarios.scenarios import SCENARIOS, play

_TIMEOUT: Final = timedelta(seconds=15)
_WINDOW: Final = "5m"


def observe(settings: PlatformSettings, terminal: Terminal) -> int:
    """Play the scenarios on a platform that sends its spans to this process, and print traces and dashboard values.

    Returns:
        The exit code: 0, or 128 plus the number of the signal that stopped it.

    Raises:
        PerdureError: The platform failed; its data and logs are kept.
    """
    binary = locate_prometheus(os.environ, settings.local_dir)
    if binary is None:
        terminal.say("Prometheus not found, so only traces are shown. To install it: make prometheus")
    return run_isolated(
        "observe", settings, terminal, lambda topology, engine: _observe(topology, engine, binary, terminal)
    )


async def _observe(topology: Topology, engine: LocatedEngine, binary: Path | None, terminal: Terminal) -> int:
    with TraceReceiver() as receiver:
        environment = {
            **harness_environment(os.environ),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        platform = Platform(topology, engine, report=terminal.say, environment=environment)
        terminal.say("Starting a platform with empty data")
        await play_on(platform, lambda: _show(platform, binary, receiver, terminal), terminal)
    return 0


async def _show(platform: Platform, binary: Path | None, receiver: TraceReceiver, terminal: Terminal) -> None:
    async with AsyncExitStack() as stack:
        prometheus = None
        if binary is not None:
            prometheus = Prometheus(binary, platform.topology, platform.topology.home / "prometheus")
            stack.push_async_callback(prometheus.stop)
            await prometheus.start()
        harness = await stack.enter_async_context(Harness.on(platform))
        for scenario in SCENARIOS:
            terminal.say(f"Playing: {scenario.title}")
            await play(scenario, harness)
        booked, rolled_back, waiting = (new_trip_id() for _ in range(3))
        await harness.book(booked, ORDINARY)
        await harness.book(rolled_back, order(hotel=HOTEL, account="acct-declined"))  # leaves a dead letter
        await harness.send(waiting, order(amount_minor=250_000))  # leaves an approval
        for trip_id, outcome in ((booked, "booked"), (rolled_back, "partly rolled back")):
            tree = await _complete_trace(receiver, trip_id)
            terminal.say(f"\nThe trace of {trip_id}, which was {outcome}", "bold")
            show_tree(tree, terminal)
            for linked in linked_to(receiver.spans(), tree):
                terminal.say(f"Linked to it: {linked.spans[0].name}", "bold")
                show_tree(linked, terminal)
        if prometheus is not None:
            await prometheus.wait_for_scrapes(timeout=_TIMEOUT)  # include the last events
            terminal.say(f"\nDashboard values over the last {_WINDOW}", "bold")
            for line in await panel_lines(prometheus.query, _WINDOW):
                terminal.say(line)


def show_tree(tree: TraceTree, terminal: Terminal) -> None:
    """Print a trace, one line per span."""
    for line in lines(tree):
        terminal.say(f"  {line}", "red" if "FAILED" in line else None)


async def _complete_trace(receiver: TraceReceiver, trip_id: str) -> TraceTree:
    """Wait until all spans of a trip have arrived."""

    def complete() -> TraceTree | None:
        tree = trace_of(receiver.spans(), trip_id)
        return tree if tree is not None and tree.is_complete else None

    return await eventually(complete, what=f"complete trace of {trip_id}", within=_TIMEOUT.total_seconds())

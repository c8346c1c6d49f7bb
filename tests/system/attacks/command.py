"""`python -m tests.system attack`: all attacks, with a plain and with an encrypted journal."""

from __future__ import annotations

import functools
import os
from typing import Final

from rich.table import Table

from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.system.attacks import Outcome, attack_all
from tests.system.attacks.platform import DefendedPlatform, defended_environment
from tests.system.scenarios.platforms import play_on, run_isolated

JOURNALS: Final = ("plain", "encrypted")
"""Journals of the attacked platforms."""


def attack(settings: PlatformSettings, terminal: Terminal) -> int:
    """Run all attacks on fresh data and free ports, and print the responses.

    Args:
        settings: Settings with the folder of restate-server.
        terminal: Receives the output.

    Returns:
        The exit code: 0 if all attacks were refused and no data changed, else 1; 128 plus the signal's number after a
        signal.

    Raises:
        PerdureError: The platform cannot run. Its data and logs are kept.
    """
    return run_isolated(
        "attack", settings, terminal, lambda topology, engine: _attack(settings, topology, engine, terminal)
    )


async def _attack(settings: PlatformSettings, topology: Topology, engine: LocatedEngine, terminal: Terminal) -> int:
    outcomes = []
    for journal in JOURNALS:
        home = topology.home / journal
        home.mkdir(mode=0o700)
        attacked = Topology.on_free_ports(home, settings)
        environment = defended_environment(attacked, os.environ, encrypted=journal == "encrypted")
        platform = Platform(attacked, engine, report=terminal.say, environment=environment, console=True)
        terminal.say(f"starting a platform with signed requests, signed actions and a journal that is {journal}")
        answered = await play_on(platform, functools.partial(_attacked, platform), terminal)
        terminal.draw(_table(f"attacks, {journal} journal", answered))
        outcomes += answered
    through = [each for each in outcomes if not each.refused]
    if through:
        terminal.say(f"{len(through)} of {len(outcomes)} attacks were NOT refused as expected", "bold red")
        return 1
    terminal.say(f"all {len(outcomes)} attacks were refused, and no data changed", "bold green")
    return 0


async def _attacked(platform: Platform) -> list[Outcome]:
    async with DefendedPlatform.on(platform) as defended:
        return await attack_all(defended)


def _table(title: str, outcomes: list[Outcome]) -> Table:
    table = Table(title=title)
    for column in ("boundary", "attack", "expected", "response", "data", ""):
        table.add_column(column, overflow="fold")
    boundary = ""
    for each in outcomes:
        if boundary and boundary != each.attack.boundary:
            table.add_section()
        table.add_row(
            "" if each.attack.boundary == boundary else each.attack.boundary,
            each.attack.name,
            each.attack.expected,
            each.observed,
            "unchanged" if each.unchanged else "CHANGED",
            "refused" if each.refused else "NOT REFUSED",
            style=None if each.refused else "bold red",
        )
        boundary = each.attack.boundary
    return table

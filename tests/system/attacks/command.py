"""`python -m tests.system attack`: every attack of the table, on defended platforms: one in clear, one encrypted."""

from __future__ import annotations

import functools
import os

from rich.table import Table

from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from services.runtime.platform import Platform
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.system.attacks import Outcome, attack_all
from tests.system.attacks.platform import DefendedPlatform, defended_environment
from tests.system.scenarios.platforms import play_on, run_trial


def attack(settings: PlatformSettings, terminal: Terminal) -> int:
    """Try every attack on fresh data and free ports, and show how each was answered.

    Args:
        settings: Where npm's restate-server is, or goes.
        terminal: Where to show it.

    Returns:
        The exit code: 0 when all were refused and nothing was changed, 1 when not, 128 and the signal's number when it
        was stopped.

    Raises:
        PerdureError: The platform can't be run. Its data and logs are kept.
    """
    return run_trial(
        "attack", settings, terminal, lambda topology, engine: _attack(settings, topology, engine, terminal)
    )


async def _attack(settings: PlatformSettings, topology: Topology, engine: LocatedEngine, terminal: Terminal) -> int:
    outcomes = []
    for journal in ("in clear", "encrypted"):
        home = topology.home / journal.replace(" ", "-")
        home.mkdir(mode=0o700)
        attacked = Topology.on_free_ports(home, settings)
        environment = defended_environment(attacked, os.environ, encrypted=journal == "encrypted")
        platform = Platform(attacked, engine, report=terminal.say, environment=environment, console=True)
        terminal.say(f"starting a platform: requests signed, actions signed, the journal {journal}")
        answered = await play_on(platform, functools.partial(_attacked, platform), terminal)
        terminal.draw(_table(f"attacks, journal {journal}", answered))
        outcomes += answered
    through = [each for each in outcomes if not each.refused]
    if through:
        terminal.say(f"{len(through)} of {len(outcomes)} attacks were NOT refused as they should be", "bold red")
        return 1
    terminal.say(f"all {len(outcomes)} attacks were refused, and nothing was changed", "bold green")
    return 0


async def _attacked(platform: Platform) -> list[Outcome]:
    async with DefendedPlatform.on(platform) as defended:
        return await attack_all(defended)


def _table(title: str, outcomes: list[Outcome]) -> Table:
    table = Table(title=title)
    for column in ("at", "what", "expected", "answer", "data", ""):
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
            "as before" if each.unchanged else "CHANGED",
            "refused" if each.refused else "GOT THROUGH",
            style=None if each.refused else "bold red",
        )
        boundary = each.attack.boundary
    return table

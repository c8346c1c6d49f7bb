"""`python -m tests.system demo`: all scenarios on a separate platform."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import httpx
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from perdure.errors import PerdureError
from services.data_plane.audit import AuditReport
from services.runtime.approval_audit import audit_platform
from services.runtime.platform import Platform
from services.runtime.reports import show_audit
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.system.scenarios.harness import Fact, Harness, harness_environment
from tests.system.scenarios.platforms import play_on, run_isolated
from tests.system.scenarios.scenarios import SCENARIOS, Scenario, play

_LONGEST: Final = timedelta(seconds=60)


@dataclass(frozen=True)
class Played:
    """Result of a scenario.

    Args:
        scenario: The scenario.
        facts: Expected and observed values.
        took: Duration.
    """

    scenario: Scenario
    facts: list[Fact]
    took: timedelta

    @property
    def agrees(self) -> bool:
        """Whether all facts are as expected."""
        return all(fact.agrees for fact in self.facts)


def demo(settings: PlatformSettings, terminal: Terminal) -> int:
    """Run all scenarios on fresh data and free ports, and print expected and observed values.

    Args:
        settings: Settings with the folder of restate-server.
        terminal: Receives the output.

    Returns:
        The exit code: 0 if all scenarios and the audit pass, else 1; 128 plus the signal's number after a signal.

    Raises:
        PerdureError: The platform cannot run. Its data and logs are kept.
    """
    began = time.monotonic()
    code = run_isolated("demo", settings, terminal, lambda topology, engine: _demo(topology, engine, terminal))
    terminal.say(f"took {time.monotonic() - began:.0f} s")
    return code


async def _demo(topology: Topology, engine: LocatedEngine, terminal: Terminal) -> int:
    platform = Platform(topology, engine, report=terminal.say, environment=harness_environment(os.environ))
    terminal.say(f"starting a platform with fresh data in {topology.home}")
    played, report = await play_on(platform, lambda: _play_all(platform, terminal), terminal)
    terminal.draw(_table(played))
    show_audit(report, terminal)
    agreeing = sum(each.agrees for each in played)
    holds = report.ok and not report.remarks
    good = agreeing == len(played) and holds
    verdict = "passed" if holds else "FAILED"
    terminal.say(
        f"{agreeing} of {len(played)} scenarios went as expected, and the audit {verdict}",
        "bold green" if good else "bold red",
    )
    return 0 if good else 1


async def _play_all(platform: Platform, terminal: Terminal) -> tuple[list[Played], AuditReport]:
    async with Harness.on(platform) as harness:
        played = []
        for scenario in SCENARIOS:
            began = time.monotonic()
            facts = await _facts(scenario, harness)
            each = Played(scenario, facts, timedelta(seconds=time.monotonic() - began))
            terminal.say(
                f"{'ok    ' if each.agrees else 'FAILED'}  {scenario.title} ({each.took.total_seconds():.1f} s)"
            )
            played.append(each)
        await harness.until_quiet()
    report = await audit_platform(platform.topology, platform.environment, platform.codec, settled=True)
    return played, report


async def _facts(scenario: Scenario, harness: Harness) -> list[Fact]:
    try:
        async with asyncio.timeout(_LONGEST.total_seconds()):
            return await play(scenario, harness)
    except TimeoutError:
        return [Fact("end", "in time", f"later than {_LONGEST.total_seconds():g} s")]
    except (PerdureError, httpx.HTTPError, SQLAlchemyError) as error:
        return [Fact("end", "without an error", f"{type(error).__name__}: {error}")]


def _table(played: list[Played]) -> Table:
    table = Table(title="expected and observed")
    for column in ("scenario", "what", "expected", "observed", ""):
        table.add_column(column, overflow="fold")
    for each in played:
        title = each.scenario.title
        for fact in each.facts:
            style = None if fact.agrees else "bold red"
            table.add_row(
                title, fact.what, fact.expected, fact.observed, "ok" if fact.agrees else "DIFFERS", style=style
            )
            title = ""
        table.add_section()
    return table

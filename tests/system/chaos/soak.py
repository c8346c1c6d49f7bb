"""`python -m tests.system soak`: book trips at a steady rate, and check memory, descriptors and latency for growth."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Final

from perdure.dev import ENGINE
from perdure.dev.interrupts import Interrupts
from perdure.dev.terminal import Terminal
from perdure.engine import LocatedEngine
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology
from tests.system.chaos.clients import Clients
from tests.system.chaos.harness import ChaosHarness, cancelled_at_end, one_sentence
from tests.system.chaos.launch import LaunchedPlatform
from tests.system.chaos.ledger import Ledger, answer_times
from tests.system.chaos.plan import ORDERS
from tests.system.scenarios.platforms import run_isolated

_CLIENTS: Final = 4
"""Each books one trip at a time, so that a busy machine makes the run slower, but no queue grows."""

_INTERVAL: Final = 0.8
"""Seconds from a client's trip to its next one, or longer if the trip takes longer."""

_SAMPLE_EVERY: Final = 2.0
_ANSWERED_WITHIN: Final = 60.0
_DISK: Final = 2 * 1024 * 1024 * 1024
_MEBIBYTE: Final = 1024 * 1024


@dataclass
class Series:
    """Measurements of one quantity over time.

    Args:
        name: The quantity.
        unit: Its unit.
        allowed: Growth that is not reported, in the unit. It adds to a tenth of the value.
    """

    name: str
    unit: str
    allowed: float
    values: list[tuple[float, float]] = field(default_factory=list)

    def medians(self) -> tuple[float, float] | None:
        """Return the medians of the second and the last quarter of the time; None without values in one of them.

        The first quarter is left out: caches and pools fill then.
        """
        times = [at for at, _ in self.values]
        if not times:
            return None
        begin, length = min(times), max(times) - min(times)
        quarters: dict[int, list[float]] = defaultdict(list)
        for at, value in self.values:
            quarters[min(3, int(4 * (at - begin) / length)) if length else 0].append(value)
        if not quarters[1] or not quarters[3]:
            return None
        return median(quarters[1]), median(quarters[3])

    @property
    def grows(self) -> bool:
        """Whether the last quarter exceeds the second one by more than the allowance."""
        medians = self.medians()
        return medians is not None and medians[1] > medians[0] * 1.1 + self.allowed

    def __str__(self) -> str:
        medians = self.medians()
        if medians is None:
            return f"{self.name}: too few values"
        return f"{self.name}: {medians[0]:.3g} to {medians[1]:.3g} {self.unit}"


def soak(settings: PlatformSettings, terminal: Terminal, *, minutes: float) -> int:
    """Run a soak test on a separate platform with fresh data.

    Args:
        settings: Settings with the folder of restate-server.
        terminal: Receives the output.
        minutes: Duration of the bookings.

    Returns:
        The exit code: 0 if nothing grows and every trip is confirmed, else 1; 128 plus the signal's number after a
        signal.

    Raises:
        PerdureError: The platform cannot run. Its data and logs are kept.
    """
    duration = timedelta(minutes=minutes)
    return run_isolated(
        "soak", settings, terminal, lambda topology, engine: _soak(topology, engine, terminal, duration)
    )


async def _soak(topology: Topology, engine: LocatedEngine, terminal: Terminal, duration: timedelta) -> int:
    interrupts = Interrupts()
    with one_sentence("the soak", topology.home), interrupts.listening():
        async with ChaosHarness.on(topology, engine, disk_size=_DISK, hurry=interrupts.hurry) as harness:
            await interrupts.run_until_stopped(harness.start())
            terminal.say(f"the platform is up; {_CLIENTS} clients book trips for {duration}")
            with closing(Ledger(topology.home / "ledger.jsonl")) as ledger:
                series = await interrupts.run_until_stopped(_measure(harness, ledger, duration))
            terminal.say("stopping")
    ordered = len({entry.trip for entry in ledger.entries})
    confirmed = sum(entry.answer == "confirmed" for entry in ledger.entries)
    for each in series:
        terminal.say(f"{'GROWS' if each.grows else 'ok   '}  {each}", "bold red" if each.grows else None)
    terminal.say(f"{confirmed} of {ordered} trips were confirmed")
    failed = any(each.grows for each in series) or confirmed < ordered
    terminal.say("the soak FAILED" if failed else "nothing grows", "bold red" if failed else "bold green")
    return 1 if failed else 0


async def _measure(harness: ChaosHarness, ledger: Ledger, duration: timedelta) -> Sequence[Series]:
    """Book trips and take samples for a duration."""
    series: dict[str, Series] = {}
    end = time.monotonic() + duration.total_seconds()
    numbers = itertools.count(1)
    async with Clients.at(harness.ingress_url, ledger) as clients, cancelled_at_end() as tasks:

        async def book() -> None:
            while (began := time.monotonic()) < end:
                await clients.order(f"soak-{next(numbers):06d}", ORDERS["ordinary"], "patient")
                await asyncio.sleep(began + _INTERVAL - time.monotonic())

        async def sample() -> None:
            while (now := time.monotonic()) < end:
                _sample(harness.platform, now, series)
                await asyncio.sleep(_SAMPLE_EVERY)

        tasks |= {asyncio.create_task(work()) for work in (*[book] * _CLIENTS, sample)}
        limit = duration.total_seconds() + _ANSWERED_WITHIN
        done, _ = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    return [*series.values(), Series("time to the answer", "s", 0.1, answer_times(ledger.entries))]


def _sample(platform: LaunchedPlatform, now: float, series: dict[str, Series]) -> None:
    """Add memory and descriptors of each process to the series."""
    for name, process in platform.processes().items():
        folder = Path(f"/proc/{process.pid}")
        resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MEBIBYTE
        # RocksDB fills its caches up to a limit of its own.
        memory = Series(f"memory of {name}", "MiB", 64.0 if name == ENGINE else 4.0)
        descriptors = Series(f"descriptors of {name}", "", 8.0)
        for each, value in ((memory, resident), (descriptors, len(list((folder / "fd").iterdir())))):
            series.setdefault(each.name, each).values.append((now, float(value)))

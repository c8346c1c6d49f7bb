"""All scenarios, and the stop of each service under load, on one platform."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import timedelta

import pytest

from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.topology import SERVICES
from tests.support import eventually
from tests.system.scenarios.harness import Harness
from tests.system.scenarios.scenarios import SCENARIOS, Scenario, play

pytestmark = pytest.mark.asyncio(loop_scope="session")

STOPS_WITHIN = timedelta(seconds=15)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_scenario_ends_as_expected(harness: Harness, scenario: Scenario):
    facts = await play(scenario, harness)
    assert [fact for fact in facts if not fact.agrees] == []


class Traffic:
    """Books trips sequentially until `end` is called."""

    def __init__(self, harness: Harness) -> None:
        self.booked = 0
        self.answers: set[str] = set()
        self._harness = harness
        self._ending = False

    async def flow(self) -> None:
        while not self._ending:
            self.answers.add(await self._harness.book(new_trip_id(), ORDINARY))
            self.booked += 1

    def end(self) -> None:
        self._ending = True


@pytest.mark.parametrize("name", [spec.name for spec in SERVICES])
async def test_sigterm_drains_service_under_load(harness: Harness, name: str):
    platform, traffic = harness.platform, Traffic(harness)
    flows = [asyncio.ensure_future(traffic.flow()) for _ in range(3)]

    async def more_booked(than: int) -> bool:
        return traffic.booked > than

    async def exit_reason() -> str | None:
        return platform.exit_reason(name)

    await eventually(lambda: more_booked(3), what="traffic")
    pid, began = platform.pid(name), time.monotonic()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    how = await eventually(exit_reason, what=f"end of {name}", within=STOPS_WITHIN.total_seconds())
    assert time.monotonic() - began < STOPS_WITHIN.total_seconds()
    assert how == f"process {pid} ended with code 0"

    await platform.restart(name)
    so_far = traffic.booked
    await eventually(lambda: more_booked(so_far + 3), what="trip after the restart")
    traffic.end()
    await asyncio.gather(*flows)
    assert traffic.answers == {"confirmed"}
    assert await harness.audit() == "holds"

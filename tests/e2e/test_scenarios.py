"""All scenarios, the stop of each service and outages of the database under load, on one platform with PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.topology import SERVICES
from tests.postgres import Postgres
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

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Book trips in three flows inside the context; all of them are confirmed."""
        flows = [asyncio.ensure_future(self.flow()) for _ in range(3)]
        try:
            yield
        finally:
            self.end()
            await asyncio.gather(*flows)
        assert self.answers == {"confirmed"}

    async def until_more(self, number: int = 3) -> None:
        """Wait for further trips."""
        before = self.booked

        async def booked() -> bool:
            return self.booked > before + number

        await eventually(booked, what="further trips")


@pytest.mark.parametrize("name", [spec.name for spec in SERVICES])
async def test_sigterm_drains_service_under_load(harness: Harness, name: str):
    platform, traffic = harness.platform, Traffic(harness)

    async def exit_reason() -> str | None:
        return platform.exit_reason(name)

    async with traffic.flowing():
        await traffic.until_more()
        pid, began = platform.pid(name), time.monotonic()
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        how = await eventually(exit_reason, what=f"end of {name}", within=STOPS_WITHIN.total_seconds())
        assert time.monotonic() - began < STOPS_WITHIN.total_seconds()
        assert how == f"process {pid} ended with code 0"
        await platform.restart(name)
        await traffic.until_more()
    assert await harness.audit() == "holds"


async def test_database_outages_under_load_lose_nothing(harness: Harness, postgres: Postgres):
    traffic = Traffic(harness)
    async with traffic.flowing():
        for _ in range(3):
            await traffic.until_more()
            await asyncio.to_thread(postgres.disconnect)
        for number in (signal.SIGQUIT, signal.SIGINT):
            await traffic.until_more()
            await asyncio.to_thread(postgres.stop, number)
            await asyncio.to_thread(postgres.start)
        await traffic.until_more()
    assert await harness.audit() == "holds"

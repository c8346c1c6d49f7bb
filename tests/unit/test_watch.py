"""A watch: looks at once, goes on whatever happens, and says once that it can't see."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import structlog
from structlog.testing import capture_logs

from perdure.engine.polling import Poller
from perdure.errors import EngineError, IngressError
from perdure.observability.gauge_collector import GaugeCollector
from perdure.observability.instruments import export_to_prometheus, prometheus_text
from perdure.observability.metrics import OPEN_APPROVALS, RECONCILER_LOOKED
from tests.support import eventually

COUNTED = OPEN_APPROVALS.prometheus_name
LOOKED = RECONCILER_LOOKED.prometheus_name


class Eyes:
    """What a watch sees: what is asked of it fails as long as it is told so."""

    def __init__(self) -> None:
        self.looks = 0
        self.problem: Exception | None = None
        self.acting_fails: Exception | None = None
        self.census = GaugeCollector("test", OPEN_APPROVALS)

    async def count(self, *_: object) -> list:
        self.looks += 1
        if self.problem:
            raise self.problem
        return [(OPEN_APPROVALS, 3, {})]

    async def look(self, *_: object) -> None:
        if self.acting_fails:
            raise self.acting_fails

    def watching(self, interval: timedelta):
        nowhere = "http://127.0.0.1:9"
        log = structlog.get_logger()
        return Poller("test", log, nowhere, nowhere, interval, None, self.census, self.count, self.look).watching()

    async def see(self, more: int) -> None:
        enough = self.looks + more

        async def seen() -> bool:
            return self.looks >= enough

        await eventually(seen, what=f"{more} more looks", within=10)


def shown() -> list[str]:
    """Return what Prometheus is shown of the watch: what it counted, and that it looked."""
    export_to_prometheus()
    lines = prometheus_text()[0].decode().splitlines()
    return [name for name in (COUNTED, LOOKED) if any(line.startswith((f"{name} ", f"{name}{{")) for line in lines)]


async def test_looks_at_once_and_ends_with_its_context():
    eyes = Eyes()
    async with eyes.watching(timedelta(hours=1)):
        await eyes.see(1)
        (watching,) = (task for task in asyncio.all_tasks() if task.get_name() == "test")
    assert watching.done()
    assert eyes.looks == 1
    assert eyes.census._samples == {OPEN_APPROVALS.name: [(3, {})]}


async def test_shows_what_it_counted_as_long_as_it_watches():
    eyes = Eyes()
    async with eyes.watching(timedelta(milliseconds=1)):
        await eyes.see(2)
        assert shown() == [COUNTED, LOOKED]
    assert shown() == []


@pytest.mark.parametrize("problem", [IngressError("no ingress"), ZeroDivisionError("division by zero")])
async def test_has_not_looked_when_it_could_not_act_on_what_it_saw(problem):
    eyes = Eyes()
    eyes.acting_fails = problem
    async with eyes.watching(timedelta(milliseconds=1)):
        await eyes.see(5)
        assert shown() == [COUNTED], "the alert about a blind reconciler asks for the other one"
        eyes.acting_fails = None
        await eyes.see(2)
        assert shown() == [COUNTED, LOOKED]


async def test_looks_again_soon_until_it_has_seen_something():
    eyes = Eyes()
    eyes.problem = EngineError("the engine's admin API does not answer")
    with capture_logs() as lines:
        async with eyes.watching(timedelta(hours=1)):
            await eyes.see(1)
            eyes.problem = None
            await eyes.see(1)
    assert eyes.looks == 2
    assert lines == []  # the engine was started together with it


async def test_says_that_it_never_saw_anything():
    eyes = Eyes()
    eyes.problem = EngineError("the engine's admin API does not answer")
    with capture_logs() as lines:
        async with eyes.watching(timedelta(milliseconds=1)):
            await eyes.see(8)
    assert [line["event"] for line in lines] == ["test.blind"]


@pytest.mark.parametrize("problem", [EngineError("no engine"), IngressError("no ingress")])
async def test_says_once_that_it_is_blind_and_once_that_it_sees(problem):
    eyes = Eyes()
    with capture_logs() as lines:
        async with eyes.watching(timedelta(milliseconds=1)):
            await eyes.see(1)
            eyes.problem = problem
            await eyes.see(5)
            assert not eyes.census._samples  # an old number would look like a new one
            eyes.problem = None
            await eyes.see(5)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("test.blind", "warning"),
        ("test.sees_again", "info"),
    ]
    assert lines[0]["error"] == str(problem)


async def test_a_bug_is_said_once_with_its_traceback_and_what_was_counted_stays():
    eyes = Eyes()
    eyes.acting_fails = ZeroDivisionError("division by zero")
    with capture_logs() as lines:
        async with eyes.watching(timedelta(milliseconds=1)):
            await eyes.see(5)
            assert eyes.census._samples
            eyes.acting_fails = None
            await eyes.see(5)
    assert [(line["event"], line.get("exc_info")) for line in lines] == [
        ("test.broken", True),
        ("test.sees_again", None),
    ]

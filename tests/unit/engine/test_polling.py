"""Polling of an engine."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from perdure.engine import polling
from perdure.engine.polling import Pace, Poller
from perdure.errors import EngineError, IngressError
from perdure.observability.gauge_collector import GaugeCollector
from perdure.observability.instruments import export_to_prometheus, prometheus_text
from perdure.observability.metrics import OPEN_APPROVALS, RECONCILER_LAST_SCAN
from tests.support import eventually

SAMPLED = OPEN_APPROVALS.prometheus_name
SCANNED = RECONCILER_LAST_SCAN.prometheus_name


class Engine:
    """Samples and scans that fail on demand."""

    def __init__(self) -> None:
        self.polls = 0
        self.error: Exception | None = None
        self.scan_error: Exception | None = None
        self.gauges = GaugeCollector("test", OPEN_APPROVALS)

    async def sample(self, *_: object) -> list:
        self.polls += 1
        if self.error:
            raise self.error
        return [(OPEN_APPROVALS, 3, {})]

    async def scan(self, *_: object) -> None:
        if self.scan_error:
            raise self.scan_error

    def watching(self, interval: timedelta):
        nowhere = "http://127.0.0.1:9"
        log = structlog.get_logger()
        return Poller("test", log, nowhere, nowhere, interval, None, self.gauges, self.sample, self.scan).watching()

    async def polled(self, more: int) -> None:
        target = self.polls + more

        async def done() -> bool:
            return self.polls >= target

        await eventually(done, what=f"{more} more polls")


def exported() -> list[str]:
    """Return which metrics of the poller Prometheus reads."""
    export_to_prometheus()
    lines = prometheus_text()[0].decode().splitlines()
    return [name for name in (SAMPLED, SCANNED) if any(line.startswith((f"{name} ", f"{name}{{")) for line in lines)]


async def test_poll_at_once_and_end_with_context():
    engine = Engine()
    async with engine.watching(timedelta(hours=1)):
        await engine.polled(1)
        (task,) = (each for each in asyncio.all_tasks() if each.get_name() == "test")
    assert task.done()
    assert engine.polls == 1
    assert engine.gauges._samples == {OPEN_APPROVALS.name: [(3, {})]}


async def test_export_samples_while_polling():
    engine = Engine()
    async with engine.watching(timedelta(milliseconds=1)):
        await engine.polled(2)
        assert exported() == [SAMPLED, SCANNED]
    assert exported() == []


@pytest.mark.parametrize("error", [IngressError("no ingress"), ZeroDivisionError("division by zero")])
async def test_failed_scan_is_not_recorded(error):
    engine = Engine()
    engine.scan_error = error
    async with engine.watching(timedelta(milliseconds=1)):
        await engine.polled(5)
        assert exported() == [SAMPLED], "the alert on a blind reconciler needs the time of the last scan"
        engine.scan_error = None
        await engine.polled(2)
        assert exported() == [SAMPLED, SCANNED]


async def test_poll_every_second_until_first_success():
    engine = Engine()
    engine.error = EngineError("the engine's admin API does not answer")
    with capture_logs() as lines:
        async with engine.watching(timedelta(hours=1)):
            await engine.polled(1)
            engine.error = None
            await engine.polled(1)
    assert engine.polls == 2
    assert lines == []  # engine and services start together


async def test_log_repeated_failure_at_start():
    engine = Engine()
    engine.error = EngineError("the engine's admin API does not answer")
    with capture_logs() as lines:
        async with engine.watching(timedelta(milliseconds=1)):
            await engine.polled(8)
    assert [line["event"] for line in lines] == ["test.blind"]


@pytest.mark.parametrize("error", [EngineError("no engine"), IngressError("no ingress")])
async def test_log_first_failure_and_recovery(error):
    engine = Engine()
    with capture_logs() as lines:
        async with engine.watching(timedelta(milliseconds=1)):
            await engine.polled(1)
            engine.error = error
            await engine.polled(5)
            assert not engine.gauges._samples  # outdated samples are not exported
            engine.error = None
            await engine.polled(5)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("test.blind", "warning"),
        ("test.sees_again", "info"),
    ]
    assert lines[0]["error"] == str(error)


async def test_log_unexpected_error_once_with_traceback():
    engine = Engine()
    engine.scan_error = ZeroDivisionError("division by zero")
    with capture_logs() as lines:
        async with engine.watching(timedelta(milliseconds=1)):
            await engine.polled(5)
            assert engine.gauges._samples
            engine.scan_error = None
            await engine.polled(5)
    assert [(line["event"], line.get("exc_info")) for line in lines] == [
        ("test.broken", True),
        ("test.sees_again", None),
    ]


class Clock:
    """Clock of a simulated minute-long wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(polling.time, "monotonic", lambda: self.now)

    def polls(self, pace: Pace, duration: float, *, every: float, seconds: float) -> int:
        """Poll for a time, with queries of a duration; return the number of queries."""
        end, number = self.now + seconds, 0
        while self.now < end:
            if pace.is_due:
                with pace.measured():
                    self.now += duration
                number += 1
            self.now += every
        return number


FIRST = 3
"""Queries of a start, which are not limited."""


@given(st.floats(0.021, 5), st.sampled_from([0.001, 0.003, 0.02]))
def test_queries_keep_their_share(duration, share):
    with pytest.MonkeyPatch.context() as monkeypatch:
        number = Clock(monkeypatch).polls(Pace(share), duration, every=5, seconds=100_000)
    assert (number - FIRST) * (duration - 0.02) <= share * 100_000


@given(st.floats(0, 0.02))
def test_short_queries_run_at_each_poll(duration):
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert Clock(monkeypatch).polls(Pace(0.001), duration, every=5, seconds=500) >= 99


def test_slow_first_query_does_not_delay_the_next(monkeypatch):
    clock, pace = Clock(monkeypatch), Pace(0.001)
    clock.polls(pace, 0.5, every=5, seconds=1)  # the engine has just started
    assert clock.polls(pace, 0.01, every=5, seconds=100) == 20


def test_delayed_query_does_not_count(monkeypatch):
    clock, pace = Clock(monkeypatch), Pace(0.01)
    clock.polls(pace, 0.01, every=5, seconds=5 * FIRST)
    clock.polls(pace, 3.0, every=5, seconds=1)  # other load on the machine
    assert pace.duration == timedelta(seconds=0.01)
    assert pace.is_due


def test_work_and_failures_permit_queries_earlier(monkeypatch):
    clock, pace = Clock(monkeypatch), Pace(0.01, timedelta(minutes=1))
    with pytest.raises(EngineError), pace.measured():
        raise EngineError("down")
    assert pace.is_due
    for _ in range(FIRST):
        with pace.measured():
            clock.now += 0.22
    clock.now += 1.1
    assert (pace.is_due, pace.is_due_for(0.2)) == (False, True)
    clock.now += 59
    assert pace.is_due

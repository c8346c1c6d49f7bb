"""Charts of timelines, and formats."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import StatusData
from perdure.engine.admin import failure_message
from perdure.saga.status import SagaPhase
from perdure.saga.timeline import Timeline, TimelineStep
from services.console.auth.users import utc_now
from services.console.dead_letters.payloads import diff, parse
from services.console.formatting import format_duration, money, quote_path, relative
from services.console.problems import ConsoleError
from services.console.sagas.chart import SCALE, draw, rounded
from services.console.sagas.schemas import Saga

START = datetime(2026, 11, 24, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def saga(*steps: TimelineStep, ended: float | None = None, result: str | None = None) -> Timeline:
    return Timeline(
        saga_id="T1",
        service="Trips",
        key="T1",
        status="running" if ended is None else "completed",
        result=result,
        started_at=START,
        ended_at=None if ended is None else after(ended),
        steps=list(steps),
    )


def called(position: int, start: float, end: float | None, result: str | None = "success") -> TimelineStep:
    return TimelineStep(
        position=position,
        step=f"step {position}",
        action="Hotels/reserve",
        started_at=after(start),
        ended_at=None if end is None else after(end),
        result=None if end is None else result,
    )


def test_killed_saga_is_orphaned():
    step, running = called(1, 0, 1), StatusData(phase=SagaPhase.RUNNING)
    killed = Saga(status=running, timeline=saga(step, ended=2, result="failure"))
    assert (killed.phase, killed.is_final) == ("orphaned", False)
    without_steps = Saga(status=running, timeline=saga(ended=2, result="failure"))
    assert without_steps.is_final
    closed = Saga(status=StatusData(phase=SagaPhase.CANCELLED), timeline=saga(step, ended=2, result="failure"))
    assert (closed.phase, closed.is_final) == ("cancelled", True)
    running_saga = Saga(status=running, timeline=saga(step))
    assert (running_saga.phase, running_saga.is_final) == ("running", False)


def test_bars_match_steps():
    chart = draw(saga(called(1, 0, 2), called(2, 2, 4, "failure"), ended=8, result="failure"), after(100))
    assert chart.duration == "8 s"
    assert [(bar.x, bar.width, bar.state, bar.duration) for bar in chart.bars] == [
        (0, 250, "done", "2 s"),
        (250, 250, "failed", "2 s"),
    ]


def test_running_bars_grow():
    noted = TimelineStep(position=1, step="order", started_at=START)
    running = draw(saga(noted, called(2, 1, None)), after(10))
    assert [bar.state for bar in running.bars] == ["noted", "running"]
    assert (running.bars[1].x, running.bars[1].width) == (100, 900)
    waiting = draw(saga(called(1, 0, 1), TimelineStep(position=2, step="approval", started_at=after(1))), after(10))
    assert waiting.bars[1].state == "waiting"
    # A step without end failed with its saga.
    assert draw(saga(called(1, 0, None), ended=3, result="failure"), after(10)).bars[0].state == "failed"


@given(
    spans=st.lists(st.tuples(st.floats(0, 1e6), st.none() | st.floats(0, 1e6)), max_size=8),
    ended=st.none() | st.floats(0, 1e6),
    now=st.floats(0, 1e7),
)
def test_bars_stay_within_scale(spans, ended, now):
    steps = [called(i, start, None if took is None else start + took) for i, (start, took) in enumerate(spans)]
    for bar in draw(saga(*steps, ended=ended), after(now)).bars:
        assert 0 <= bar.x <= SCALE
        assert 0 < bar.width <= SCALE


@given(st.floats(0, 1e8))
def test_round_up_by_eleven_percent_at_most(seconds):
    duration = timedelta(seconds=seconds)
    assert duration - timedelta(microseconds=1) <= rounded(duration)
    assert rounded(duration) <= max(duration * 1.11, timedelta(seconds=1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.012, "12 ms"),
        (0.9996, "1 s"),
        (3.44, "3.4 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (11520, "3 h 12 min"),
        (93600, "1 d 2 h"),
    ],
)
def test_format_duration(seconds, text):
    assert format_duration(timedelta(seconds=seconds)) == text


def test_format_times_money_paths_and_errors():
    assert relative(utc_now() - timedelta(minutes=5)) == "5 min ago"
    assert relative(utc_now() + timedelta(hours=2, seconds=0.2)) == "in 2 h"
    assert money({"amount_minor": 250_050, "currency": "EUR"}) == "2,500.50 EUR"
    assert money({"amount_minor": "250", "currency": "EUR"}) == ""
    assert quote_path("a/b c?d#e%") == "a/b%20c%3Fd%23e%25"
    assert failure_message("[500] it broke\nTraceback (most recent call last)\n  File x") == "it broke"
    assert failure_message(None) is None


def test_diff_by_lines():
    before, now = {"key": "k", "trip_id": "T1", "n": 1}, {"key": "k", "trip_id": "T2", "n": 1}
    kinds = [(line.kind, line.text.strip()) for line in diff(before, now)]
    assert ("removed", '"trip_id": "T1",') in kinds
    assert ("added", '"trip_id": "T2",') in kinds
    assert ("same", '"key": "k",') in kinds
    assert diff(before, dict(reversed(before.items()))) == [], "order of fields"


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"a": Infinity}', "null", "[" * 100_000])
def test_reject_invalid_payload(text):
    with pytest.raises(ConsoleError) as caught:
        parse(text)
    assert caught.value.status == 400


def test_bar_shows_next_attempt_of_compensation():
    step = called(1, 0, 1).model_copy(update={"undo": "pending", "error": "down", "next_attempt_at": after(60)})
    (bar,) = draw(saga(step, ended=2, result="failure"), after(10)).bars
    assert (bar.error, bar.next_attempt_at, bar.compensation_level) == ("down", after(60), "busy")

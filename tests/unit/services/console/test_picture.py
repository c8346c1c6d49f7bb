"""A timeline as a picture, and what else is made for the eye."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import StatusData
from perdure.engine.admin import failure_message
from perdure.saga.status import SagaPhase
from perdure.saga.timeline import Timeline, TimelineStep
from services.console.pages.picture import SCALE, draw, rounded, spoken
from services.console.pages.render import from_now, money, path_of
from services.console.people.persons import utc_now
from services.console.problems import ConsoleError
from services.console.reads.payloads import difference, read_payload
from services.console.reads.sagas import Saga

BEGIN = datetime(2026, 11, 24, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def saga(*steps: TimelineStep, ended: float | None = None, result: str | None = None) -> Timeline:
    return Timeline(
        saga_id="T1",
        service="Trips",
        key="T1",
        status="running" if ended is None else "completed",
        result=result,
        started_at=BEGIN,
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


def test_a_saga_whose_orchestration_was_killed_is_lost_and_still_moves():
    step, running = called(1, 0, 1), StatusData(phase=SagaPhase.RUNNING)
    killed = Saga(status=running, timeline=saga(step, ended=2, result="failure"))
    assert (killed.phase, killed.is_over) == ("orphaned", False)
    nothing_to_undo = Saga(status=running, timeline=saga(ended=2, result="failure"))
    assert nothing_to_undo.is_over
    closed = Saga(status=StatusData(phase=SagaPhase.CANCELLED), timeline=saga(step, ended=2, result="failure"))
    assert (closed.phase, closed.is_over) == ("cancelled", True)
    lives = Saga(status=running, timeline=saga(step))
    assert (lives.phase, lives.is_over) == ("running", False)


def test_bars_stand_where_and_as_long_as_the_steps_did():
    picture = draw(saga(called(1, 0, 2), called(2, 2, 4, "failure"), ended=8, result="failure"), after(100))
    assert picture.span == "8 s"
    assert [(bar.x, bar.width, bar.look, bar.took) for bar in picture.bars] == [
        (0, 250, "done", "2 s"),
        (250, 250, "failed", "2 s"),
    ]


def test_what_runs_grows_and_what_only_was_noted_does_not():
    noted = TimelineStep(position=1, step="order", started_at=BEGIN)
    running = draw(saga(noted, called(2, 1, None)), after(10))
    assert [bar.look for bar in running.bars] == ["noted", "running"]
    assert (running.bars[1].x, running.bars[1].width) == (100, 900)
    waiting = draw(saga(called(1, 0, 1), TimelineStep(position=2, step="approval", started_at=after(1))), after(10))
    assert waiting.bars[1].look == "waiting"
    # A step that never ended was cut off with its saga.
    assert draw(saga(called(1, 0, None), ended=3, result="failure"), after(10)).bars[0].look == "failed"


@given(
    spans=st.lists(st.tuples(st.floats(0, 1e6), st.none() | st.floats(0, 1e6)), max_size=8),
    ended=st.none() | st.floats(0, 1e6),
    now=st.floats(0, 1e7),
)
def test_no_bar_leaves_the_picture(spans, ended, now):
    steps = [called(i, start, None if took is None else start + took) for i, (start, took) in enumerate(spans)]
    for bar in draw(saga(*steps, ended=ended), after(now)).bars:
        assert 0 <= bar.x <= SCALE
        assert 0 < bar.width <= SCALE


@given(st.floats(0, 1e8))
def test_rounding_goes_up_by_less_than_a_tenth(seconds):
    duration = timedelta(seconds=seconds)
    assert duration - timedelta(microseconds=1) <= rounded(duration)
    assert rounded(duration) <= max(duration * 1.11, timedelta(seconds=1))


@pytest.mark.parametrize(
    ("seconds", "words"),
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
def test_durations_are_spoken(seconds, words):
    assert spoken(timedelta(seconds=seconds)) == words


def test_what_is_made_for_the_eye():
    assert from_now(utc_now() - timedelta(minutes=5)) == "5 min ago"
    assert from_now(utc_now() + timedelta(hours=2, seconds=0.2)) == "in 2 h"
    assert money({"amount_minor": 250_050, "currency": "EUR"}) == "2,500.50 EUR"
    assert money({"amount_minor": "250", "currency": "EUR"}) == ""
    assert path_of("a/b c?d#e%") == "a/b%20c%3Fd%23e%25"
    assert failure_message("[500] it broke\nTraceback (most recent call last)\n  File x") == "it broke"
    assert failure_message(None) is None


def test_a_payload_is_compared_line_by_line():
    before, now = {"key": "k", "trip_id": "T1", "n": 1}, {"key": "k", "trip_id": "T2", "n": 1}
    kinds = [(line.kind, line.text.strip()) for line in difference(before, now)]
    assert ("gone", '"trip_id": "T1",') in kinds
    assert ("new", '"trip_id": "T2",') in kinds
    assert ("same", '"key": "k",') in kinds
    assert difference(before, dict(reversed(before.items()))) == [], "the order of fields is no difference"


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"a": Infinity}', "null", "[" * 100_000])
def test_what_is_no_payload_is_refused(text):
    with pytest.raises(ConsoleError) as caught:
        read_payload(text)
    assert caught.value.status == 400

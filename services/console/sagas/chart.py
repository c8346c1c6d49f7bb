"""The bars of a saga's timeline, on a scale of 1000. Pure, without engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from perdure.saga.timeline import Timeline, TimelineStep
from services.console.formatting import format_duration

SCALE: Final = 1000.0
_MIN_WIDTH: Final = 6.0

BarState = Literal["done", "failed", "running", "waiting", "noted", "rollback"]

_COMPENSATED: Final = frozenset({"undone", "resolved", "skipped", "discarded"})


@dataclass(frozen=True)
class Bar:
    """A step, or the rollback.

    Args:
        name: Its name.
        detail: The operation.
        state: Its state.
        x: The start of the bar.
        width: The width of the bar.
        duration: Its duration.
        attempts: The number of attempts, if more than one.
        compensation_status: The status of its compensation; empty for none.
        compensation_level: ``good``, ``bad`` or ``busy``.
        compensation: The compensation.
        error: The last error of the compensation.
        next_attempt_at: When the failed compensation is tried again.
    """

    name: str
    detail: str
    state: BarState
    x: float
    width: float
    duration: str = ""
    attempts: int = 0
    compensation_status: str = ""
    compensation_level: str = ""
    compensation: str = ""
    error: str = ""
    next_attempt_at: datetime | None = None


@dataclass(frozen=True)
class Chart:
    """The steps in order, then the rollback, and the duration of the whole."""

    bars: list[Bar]
    duration: str


def draw(timeline: Timeline, now: datetime) -> Chart:
    """Return the chart of a timeline; running steps extend to now."""
    start = timeline.started_at
    times = [timeline.ended_at, *(step.ended_at for step in timeline.steps)]
    if timeline.rollback is not None:
        times.append(timeline.rollback.updated_at)
    latest = max((time for time in times if time is not None), default=start)
    is_running = timeline.ended_at is None or (timeline.rollback is not None and timeline.rollback.status == "running")
    # Rounded, so that a growing bar does not change the live page with every poll.
    end = max(latest, start + rounded(now - start)) if is_running else latest
    total = max((end - start).total_seconds(), 0.001)

    def position(begin: datetime, stop: datetime) -> tuple[float, float]:
        x = min((begin - start).total_seconds() / total, 1.0) * SCALE
        width = max((stop - begin).total_seconds() / total * SCALE, _MIN_WIDTH)
        return round(max(0.0, min(x, SCALE - _MIN_WIDTH)), 1), round(min(width, SCALE), 1)

    bars = []
    for index, step in enumerate(timeline.steps):
        next_start = timeline.steps[index + 1].started_at if index + 1 < len(timeline.steps) else None
        state, stop = _state(step, next_start, timeline, end)
        x, width = position(step.started_at or start, stop or step.started_at or start)
        bars.append(_bar(step, state, x, width))
    if timeline.rollback is not None:
        rollback = timeline.rollback
        is_open = rollback.status == "running"
        x, width = position(rollback.started_at, end if is_open else rollback.updated_at)
        duration = "" if is_open else format_duration(rollback.updated_at - rollback.started_at)
        bars.append(Bar("rollback", rollback.status.value.replace("_", " "), "rollback", x, width, duration))
    return Chart(bars=bars, duration=format_duration(end - start))


def _state(
    step: TimelineStep, next_start: datetime | None, timeline: Timeline, end: datetime
) -> tuple[BarState, datetime | None]:
    if step.result is not None:
        return ("done" if step.result == "success" else "failed"), step.ended_at
    stopped = timeline.ended_at
    if step.action == "wait":
        if next_start is None and stopped is None and timeline.rollback is None:
            return "waiting", end
        return "noted", step.ended_at
    return ("running", end) if stopped is None else ("failed", stopped)


def _bar(step: TimelineStep, state: BarState, x: float, width: float) -> Bar:
    status = (step.undo or "").replace("_", " ")
    attempts = f", {step.compensation_attempts} failed attempts" if step.compensation_attempts > 1 else ""
    return Bar(
        name=step.step,
        detail="" if step.action in ("wait", "run") else step.action,
        state=state,
        x=x,
        width=width,
        duration="" if step.took is None else format_duration(step.took),
        attempts=step.attempts if step.attempts is not None and step.attempts > 1 else 0,
        compensation_status=f"{status}{attempts}" if status else "",
        compensation_level="good" if step.undo in _COMPENSATED else "bad" if step.undo == "dead_letter" else "busy",
        compensation=step.compensation or "",
        error=step.error or "",
        next_attempt_at=step.next_attempt_at,
    )


def rounded(duration: timedelta) -> timedelta:
    """Return a duration rounded up to two digits: 12.34 s to 13 s, 754 s to 760 s."""
    seconds = duration.total_seconds()
    if seconds <= 1:
        return timedelta(seconds=1)
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return timedelta(seconds=math.ceil(seconds / unit - 1e-9) * unit)

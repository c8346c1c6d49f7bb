"""A saga's timeline as a picture: pure, from the timeline to bars on a scale of 1000."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from perdure.saga.timeline import Timeline, TimelineStep

SCALE: Final = 1000.0
_NARROWEST: Final = 6.0

Look = Literal["done", "failed", "running", "waiting", "noted", "undoing"]

_UNDONE_WELL: Final = frozenset({"undone", "resolved", "skipped", "discarded"})


@dataclass(frozen=True)
class Bar:
    """One step, or the rollback.

    Args:
        name: Its name.
        detail: What ran.
        look: How it stands.
        x: Where the bar begins.
        width: How long it is.
        took: How long it took, in words.
        attempts: How often it was tried, when more than once.
        undo: How its undoing stands, in words; empty when nothing is undone.
        undo_look: ``good``, ``bad`` or ``busy``.
        compensation: What undoes it.
        error: Why undoing it failed last.
    """

    name: str
    detail: str
    look: Look
    x: float
    width: float
    took: str = ""
    attempts: int = 0
    undo: str = ""
    undo_look: str = ""
    compensation: str = ""
    error: str = ""


@dataclass(frozen=True)
class Picture:
    """A timeline.

    Args:
        bars: The steps in order, and the rollback if there is one.
        span: How long all of it is, in words.
    """

    bars: list[Bar]
    span: str


def draw(timeline: Timeline, now: datetime) -> Picture:
    """Return the picture of a timeline.

    Args:
        timeline: The timeline.
        now: The time, up to which what still runs is drawn.
    """
    begin = timeline.started_at
    moments = [timeline.ended_at, *(step.ended_at for step in timeline.steps)]
    if timeline.rollback is not None:
        moments.append(timeline.rollback.updated_at)
    known = max((each for each in moments if each is not None), default=begin)
    moves = timeline.ended_at is None or (timeline.rollback is not None and timeline.rollback.status == "running")
    # What runs is drawn to a rounded moment, so that a picture which only grows is not sent anew twice a second.
    end = max(known, begin + rounded(now - begin)) if moves else known
    whole = max((end - begin).total_seconds(), 0.001)

    def place(start: datetime, stop: datetime) -> tuple[float, float]:
        x = min((start - begin).total_seconds() / whole, 1.0) * SCALE
        width = max((stop - start).total_seconds() / whole * SCALE, _NARROWEST)
        return round(max(0.0, min(x, SCALE - _NARROWEST)), 1), round(min(width, SCALE), 1)

    bars = []
    for index, step in enumerate(timeline.steps):
        following = timeline.steps[index + 1].started_at if index + 1 < len(timeline.steps) else None
        look, stop = _look(step, following, timeline, end)
        x, width = place(step.started_at or begin, stop or step.started_at or begin)
        bars.append(_bar(step, look, x, width))
    if timeline.rollback is not None:
        rollback = timeline.rollback
        open_ = rollback.status == "running"
        x, width = place(rollback.started_at, end if open_ else rollback.updated_at)
        took = "" if open_ else spoken(rollback.updated_at - rollback.started_at)
        bars.append(Bar("rollback", rollback.status.value.replace("_", " "), "undoing", x, width, took))
    return Picture(bars=bars, span=spoken(end - begin))


def _look(
    step: TimelineStep, following: datetime | None, timeline: Timeline, end: datetime
) -> tuple[Look, datetime | None]:
    if step.result is not None:
        return ("done" if step.result == "success" else "failed"), step.ended_at
    stopped = timeline.ended_at
    if step.action == "wait":
        if following is None and stopped is None and timeline.rollback is None:
            return "waiting", end
        return "noted", step.ended_at
    return ("running", end) if stopped is None else ("failed", stopped)


def _bar(step: TimelineStep, look: Look, x: float, width: float) -> Bar:
    undo = (step.undo or "").replace("_", " ")
    tries = f", {step.compensation_attempts} failed tries" if step.compensation_attempts > 1 else ""
    return Bar(
        name=step.step,
        detail="" if step.action in ("wait", "run") else step.action,
        look=look,
        x=x,
        width=width,
        took="" if step.took is None else spoken(step.took),
        attempts=step.attempts if step.attempts is not None and step.attempts > 1 else 0,
        undo=f"{undo}{tries}" if undo else "",
        undo_look="good" if step.undo in _UNDONE_WELL else "bad" if step.undo == "dead_letter" else "busy",
        compensation=step.compensation or "",
        error=step.error or "",
    )


def rounded(duration: timedelta) -> timedelta:
    """Return a duration rounded up to two digits: 12.34 s become 13 s, 754 s become 760 s.

    Args:
        duration: The duration.
    """
    seconds = duration.total_seconds()
    if seconds <= 1:
        return timedelta(seconds=1)
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return timedelta(seconds=math.ceil(seconds / unit - 1e-9) * unit)


def spoken(duration: timedelta) -> str:
    """Return a duration as people read it: ``12 ms``, ``3.4 s``, ``2 min 5 s``, ``3 h 12 min``, ``4 d 2 h``.

    Args:
        duration: The duration; a negative one is none.
    """
    seconds = max(0.0, duration.total_seconds())
    if seconds < 0.9995:
        return f"{round(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for name, size, lesser, lesser_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // lesser_size
            return f"{whole // size} {name}" + (f" {rest} {lesser}" if rest else "")
    return f"{whole} s"

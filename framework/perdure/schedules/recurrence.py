"""When a schedule fires, and what becomes of the firings that nobody was there for: pure, no engine and no clock.

A cron expression is read as Debian's cron reads it (by the library cronsim), in the schedule's time zone. When clocks
change, an expression with a fixed minute and hour fires once: for a time that does not exist right after the gap, for
one that comes twice the first time. One with ``*`` in minute or hour, or with seconds, follows the time that passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

SHORTEST_INTERVAL: Final = timedelta(milliseconds=10)
MOST_AT_ONCE: Final = 100
"""How many runs of one schedule may go on at once; further firings are left out, as overlapping."""

_WALK: Final = 5_000
"""How many occurrences are counted one by one; after a longer outage the number of missed ones is at least this."""
_AGES_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)

_TIMING: Final = ("cron", "every", "timezone", "start", "end")

_MACROS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


class CatchUp(StrEnum):
    """What becomes of firings whose time passed while the engine or the schedule's service was down.

    ``SKIP`` leaves out what is late; ``LATEST`` runs the latest one; ``ALL`` runs all of them, up to a limit,
    side by side.
    """

    SKIP = "skip"
    LATEST = "latest"
    ALL = "all"


class Overlap(StrEnum):
    """What becomes of a firing while the run before is still going: ``SKIP`` leaves it out, ``ALLOW`` runs it too."""

    SKIP = "skip"
    ALLOW = "allow"


class ScheduledTarget(BaseModel):
    """The handler that a schedule starts.

    Args:
        service: Its service.
        handler: Its name.
        key: The key, when it belongs to a virtual object or a workflow. ``{schedule}``, ``{planned}`` (as in
            ``2026-11-24T02:00:00Z``) and ``{date}`` in it are filled in; a workflow runs once for each key, so it needs
            one of the last two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9._-]*$", max_length=200)]
    handler: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=200)]
    key: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = None

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}" if self.key is None else f"{self.service}/{self.key}/{self.handler}"

    def key_of(self, schedule: str, planned: datetime, timezone: str) -> str | None:
        """Return the key for one firing.

        Args:
            schedule: The schedule's name.
            planned: When the firing was due.
            timezone: The schedule's time zone, by which ``{date}`` is read.
        """
        if self.key is None:
            return None
        local = planned.astimezone(ZoneInfo(timezone))
        facts = {"{schedule}": schedule, "{planned}": stamp(planned), "{date}": f"{local:%Y-%m-%d}"}
        filled = self.key
        for name, value in facts.items():
            filled = filled.replace(name, value)
        return filled


class ScheduleSpec(BaseModel):
    """What a schedule does, and when.

    Args:
        cron: A cron expression: five fields, six with seconds first, or ``@daily`` and the like.
        every: A fixed interval, instead of ``cron``; at least 10 ms.
        timezone: The time zone in which the expression is read, for example ``Europe/Vienna``.
        target: The handler to start.
        payload: What it is given, as JSON.
        catch_up: What becomes of firings that were missed; ``all`` goes with the overlap ``allow`` only.
        catch_up_limit: With ``all``: how many of them run at most; the latest ones.
        tolerance: With ``skip``: how late a firing may be and still run.
        overlap: What becomes of a firing while the run before is still going.
        start: No firing before this moment; an interval is counted from it.
        end: No firing after this moment.
        description: What it is for, in a person's words.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    cron: Annotated[str, StringConstraints(max_length=200, strip_whitespace=True)] | None = None
    every: timedelta | None = None
    timezone: Annotated[str, StringConstraints(max_length=100)] = "UTC"
    target: ScheduledTarget
    payload: JsonValue = None
    catch_up: CatchUp = CatchUp.SKIP
    catch_up_limit: int = Field(default=100, ge=1, le=MOST_AT_ONCE)
    tolerance: timedelta = Field(default=timedelta(minutes=1), ge=timedelta(0))
    overlap: Overlap = Overlap.SKIP
    start: AwareDatetime | None = None
    end: AwareDatetime | None = None
    description: Annotated[str, StringConstraints(max_length=2000)] = ""

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"'{name}' is no time zone; take one like UTC or Europe/Vienna") from error
        return name

    @field_validator("cron")
    @classmethod
    def _readable(cls, expression: str | None) -> str | None:
        if expression is None:
            return None
        try:
            fires = next(_cron(expression, _AGES_AGO), None)
        except CronSimError as error:
            raise ValueError(
                f"'{expression}' is no cron expression: {str(error).lower()}; "
                "write minute, hour, day, month and weekday, as in '30 2 * * *'"
            ) from error
        if fires is None:
            raise ValueError(f"'{expression}' never fires: no date fits it")
        return expression

    @field_validator("every")
    @classmethod
    def _long_enough(cls, interval: timedelta | None) -> timedelta | None:
        if interval is not None and interval < SHORTEST_INTERVAL:
            raise ValueError(f"an interval is at least 10 ms, got {interval.total_seconds() * 1000:g} ms")
        return interval

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSpec:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give a cron expression or an interval (every), and not both")
        if self.catch_up is CatchUp.ALL and self.overlap is Overlap.SKIP:
            raise ValueError("catch_up 'all' starts runs side by side, so it goes with overlap 'allow' only")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise ValueError(f"the end, {self.end.isoformat()}, is before the start, {self.start.isoformat()}")
        return self

    def fires_like(self, other: ScheduleSpec) -> bool:
        """Tell if another schedule fires at the same times, whatever it starts.

        Args:
            other: The other schedule.
        """
        return all(getattr(self, name) == getattr(other, name) for name in _TIMING)

    @property
    def timing(self) -> str:
        """When it fires, in a phrase."""
        if self.every is not None:
            return f"every {self.every.total_seconds():g} s"
        return f"{self.cron} ({self.timezone})"


class FiringPlan(BaseModel):
    """What a firing comes to.

    Args:
        now: When it was decided.
        due: The planned times to run now, oldest first.
        missed: How many are left out for being late; after a very long outage, at least so many.
        next_at: When the schedule fires next; None when it never does again.
    """

    model_config = ConfigDict(frozen=True)

    now: datetime
    due: list[datetime] = []
    missed: int = 0
    next_at: datetime | None = None


def next_after(spec: ScheduleSpec, moment: datetime, anchor: datetime) -> datetime | None:
    """Return when a schedule fires first after a moment, in UTC; None when it never does.

    Args:
        spec: The schedule.
        moment: The moment, with a time zone. A firing at this very moment is not after it.
        anchor: What intervals are counted from when the schedule has no start: when it was set.
    """
    return next(_occurrences(spec, moment, anchor), None)


def decide(spec: ScheduleSpec, planned: datetime, now: datetime, anchor: datetime) -> FiringPlan:
    """Decide what to run at a firing that may be late.

    Args:
        spec: The schedule.
        planned: When this firing was due.
        now: What the clock says; when it says less than ``planned``, as with clocks that differ, it is not late.
        anchor: What intervals are counted from.
    """
    now = max(now.astimezone(UTC), planned.astimezone(UTC))
    keep = spec.catch_up_limit if spec.catch_up is CatchUp.ALL else 1
    latest, count = _latest_between(spec, planned, now, anchor, keep)
    due = [planned.astimezone(UTC), *latest][-keep:]
    if spec.catch_up is CatchUp.SKIP and now - due[-1] > spec.tolerance:
        due = []
    return FiringPlan(now=now, due=due, missed=count + 1 - len(due), next_at=next_after(spec, now, anchor))


def stamp(moment: datetime) -> str:
    """Return a moment as text, in UTC, as in ``2026-11-24T02:00:00Z``; with a fraction only if it has one."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _latest_between(
    spec: ScheduleSpec, after: datetime, until: datetime, anchor: datetime, keep: int
) -> tuple[list[datetime], int]:
    """Return the last so many occurrences after one moment and up to another, and how many there are in all."""
    if spec.every is not None:
        return _latest_of_interval(spec, after, until, anchor, keep)
    if spec.end is not None:
        until = min(until, spec.end)
    kept: deque[datetime] = deque(maxlen=keep)
    for count, each in enumerate(_occurrences(spec, after, anchor)):
        if each > until:
            return list(kept), count
        if count == _WALK:
            break
        kept.append(each)
    else:
        return list(kept), len(kept)  # the schedule ended before
    kept.clear()
    for each in _occurrences(spec, max(after, _look_back(spec, until, keep)), anchor):
        if each > until:
            break
        kept.append(each)
    return list(kept), max(_WALK, len(kept))


def _look_back(spec: ScheduleSpec, until: datetime, keep: int) -> datetime:
    """Return a moment not long before the last so many firings of a cron expression."""
    found = until
    # Going backwards, cronsim may shift what falls into a change of the clocks, so it only says about where to begin.
    for each in islice(_cron(spec.cron or "", until.astimezone(ZoneInfo(spec.timezone)), reverse=True), keep + 2):
        found = each.astimezone(UTC)
    return found - timedelta(hours=3)


def _latest_of_interval(
    spec: ScheduleSpec, after: datetime, until: datetime, anchor: datetime, keep: int
) -> tuple[list[datetime], int]:
    first = next_after(spec, after, anchor)
    last = until if spec.end is None else min(until, spec.end)
    if spec.every is None or first is None or first > last:
        return [], 0
    count = (last - first) // spec.every + 1
    return [first + spec.every * number for number in range(max(0, count - keep), count)], count


def _occurrences(spec: ScheduleSpec, after: datetime, anchor: datetime) -> Iterator[datetime]:
    """Return when a schedule fires after a moment, in order, in UTC, without end unless it has one."""
    after = after.astimezone(UTC)
    fires = _at_intervals(spec, after, anchor) if spec.every is not None else _by_cron(spec, after)
    for each in fires:
        if spec.end is not None and each > spec.end:
            return
        yield each


def _at_intervals(spec: ScheduleSpec, after: datetime, anchor: datetime) -> Iterator[datetime]:
    if spec.every is None:
        return
    begin = (spec.start or anchor).astimezone(UTC)
    # The start itself is a firing; the moment of setting is not.
    number = max((after - begin) // spec.every + 1, 0 if spec.start is not None else 1)
    while True:
        yield begin + spec.every * number
        number += 1


def _by_cron(spec: ScheduleSpec, after: datetime) -> Iterator[datetime]:
    if spec.cron is None:
        return
    if spec.start is not None:
        after = max(after, spec.start.astimezone(UTC) - timedelta(microseconds=1))
    for each in _cron(spec.cron, after.astimezone(ZoneInfo(spec.timezone))):
        moment = each.astimezone(UTC)
        # In the hour that comes twice, cronsim begins from its first pass whichever it was given.
        if moment > after:
            after = moment
            yield moment


def _cron(expression: str, after: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    return iter(CronSim(_MACROS.get(expression.lower(), expression), after.replace(microsecond=0), reverse=reverse))

"""Pure functions that compute when a schedule fires and which missed firings to run.

The library cronsim parses cron expressions as Debian's cron does, in the schedule's time zone. On a change to or from
daylight saving time, an expression with a fixed minute and hour fires once: right after the gap if its time is
skipped, and at the first occurrence if its time is repeated. An expression with ``*`` in minute or hour, or with
seconds, follows elapsed time.
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
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

MIN_INTERVAL: Final = timedelta(milliseconds=10)
MAX_ACTIVE_RUNS: Final = 100
"""The limit of concurrent runs of a schedule; further firings are skipped and counted as overlapped."""

MAX_INTERVAL: Final = timedelta(days=36_525)
EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(3000, 1, 1, tzinfo=UTC)

_MAX_COUNTED: Final = 5_000
"""The limit of occurrences that are counted one by one; after a longer outage, ``missed`` is a lower bound."""
_REFERENCE_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)

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


def _check_time(time: datetime) -> datetime:
    """Refuse times with which computing overflows, and local times that the clocks skip."""
    if not EARLIEST <= time < LATEST:
        raise ValueError(
            f"{time.isoformat()} is out of range: use a time from {EARLIEST.year} to {LATEST.year - 1}, or omit it for "
            "no limit"
        )
    in_utc = time.astimezone(UTC)
    if in_utc.astimezone(time.tzinfo).replace(tzinfo=None) != time.replace(tzinfo=None):
        raise ValueError(f"{time.isoformat()} does not exist in {time.tzinfo}: the clocks skip it")
    return in_utc


ScheduleTime = Annotated[AwareDatetime, AfterValidator(_check_time)]
"""Time with an offset or time zone, in UTC after validation."""


class CatchUp(StrEnum):
    """Policy for firings missed while the engine or the schedule's service was down.

    ``SKIP`` drops late firings. ``LATEST`` runs the latest one. ``ALL`` runs all of them concurrently, up to a limit.
    """

    SKIP = "skip"
    LATEST = "latest"
    ALL = "all"


class Overlap(StrEnum):
    """Policy for a firing while the previous run is active: ``SKIP`` drops it, ``ALLOW`` starts it."""

    SKIP = "skip"
    ALLOW = "allow"


class ScheduledTarget(BaseModel):
    """The handler that a schedule starts.

    Args:
        service: The handler's service.
        handler: The handler's name.
        key: The key of a virtual object or workflow. The placeholders ``{schedule}``, ``{planned}`` (such as
            ``2026-11-24T02:00:00Z``) and ``{date}`` are substituted. A workflow needs one of the last two, since it
            runs once per key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9._-]*$", max_length=200)]
    handler: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=200)]
    key: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = None

    def __str__(self) -> str:
        return f"{self.service}/{self.handler}" if self.key is None else f"{self.service}/{self.key}/{self.handler}"

    def resolve_key(self, schedule: str, planned: datetime, timezone: str) -> str | None:
        """Return the key for one firing; ``{date}`` is the date in the schedule's time zone."""
        if self.key is None:
            return None
        local = planned.astimezone(ZoneInfo(timezone))
        key = self.key
        for placeholder, value in {
            "{schedule}": schedule,
            "{planned}": format_utc(planned),
            "{date}": f"{local:%Y-%m-%d}",
        }.items():
            key = key.replace(placeholder, value)
        return key


class ScheduleSpec(BaseModel):
    """Timing, target and policies of a schedule.

    Args:
        cron: A cron expression: five fields, six with seconds first, or a macro such as ``@daily``.
        every: A fixed interval of 10 ms to 100 years, instead of ``cron``.
        timezone: The time zone of the cron expression, for example ``Europe/Vienna``.
        target: The handler to start.
        payload: The handler's request, as JSON.
        catch_up: The policy for missed firings; ``all`` requires the overlap policy ``allow``.
        catch_up_limit: The maximum number of missed firings to run with ``all``; the latest ones run.
        tolerance: The maximum delay of a firing that still runs with ``skip``.
        overlap: The policy for a firing while the previous run is active.
        start: The earliest firing, from 1970 to 2999; intervals are counted from it.
        end: The latest firing, from 1970 to 2999; None for no limit.
        description: The purpose of the schedule.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    cron: Annotated[str, StringConstraints(max_length=200, strip_whitespace=True)] | None = None
    every: timedelta | None = None
    timezone: Annotated[str, StringConstraints(max_length=100)] = "UTC"
    target: ScheduledTarget
    payload: JsonValue = None
    catch_up: CatchUp = CatchUp.SKIP
    catch_up_limit: int = Field(default=100, ge=1, le=MAX_ACTIVE_RUNS)
    tolerance: timedelta = Field(default=timedelta(minutes=1), ge=timedelta(0), le=MAX_INTERVAL)
    overlap: Overlap = Overlap.SKIP
    start: ScheduleTime | None = None
    end: ScheduleTime | None = None
    description: Annotated[str, StringConstraints(max_length=2000)] = ""

    @field_validator("timezone")
    @classmethod
    def _validate_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"'{name}' is not a time zone; use a name such as UTC or Europe/Vienna") from error
        return name

    @field_validator("cron")
    @classmethod
    def _validate_cron(cls, expression: str | None) -> str | None:
        if expression is None:
            return None
        try:
            fires = next(_cron(expression, _REFERENCE_TIME), None)
        except CronSimError as error:
            raise ValueError(
                f"'{expression}' is not a cron expression: {str(error).lower()}; "
                "write minute, hour, day, month and weekday, for example '30 2 * * *'"
            ) from error
        if fires is None:
            raise ValueError(f"'{expression}' never fires: no date matches it")
        return expression

    @field_validator("every")
    @classmethod
    def _validate_interval(cls, interval: timedelta | None) -> timedelta | None:
        if interval is not None and interval < MIN_INTERVAL:
            raise ValueError(f"the interval must be at least 10 ms, got {interval.total_seconds() * 1000:g} ms")
        if interval is not None and interval > MAX_INTERVAL:
            raise ValueError(f"the interval must be at most 100 years, got {interval.days} days")
        return interval

    @field_validator("end")
    @classmethod
    def _validate_end(cls, end: datetime | None, info: ValidationInfo) -> datetime | None:
        start = info.data.get("start")
        if start is not None and end is not None and end < start:
            raise ValueError(f"the end {end.isoformat()} is before the start {start.isoformat()}")
        return end

    @model_validator(mode="after")
    def _validate_combination(self) -> ScheduleSpec:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give either a cron expression or an interval (every)")
        if self.catch_up is CatchUp.ALL and self.overlap is Overlap.SKIP:
            raise ValueError("catch_up 'all' starts concurrent runs and requires overlap 'allow'")
        return self

    def has_same_timing(self, other: ScheduleSpec) -> bool:
        """Return whether two schedules fire at the same times."""
        return all(getattr(self, name) == getattr(other, name) for name in _TIMING)

    @property
    def timing(self) -> str:
        """The timing as text, for example ``every 60 s``."""
        if self.every is not None:
            return f"every {self.every.total_seconds():g} s"
        return f"{self.cron} ({self.timezone})"


class FiringDecision(BaseModel):
    """The planned times to run at a firing.

    Args:
        now: The time of the decision.
        due: The planned times to run now, oldest first.
        missed: The number of late firings that are skipped; a lower bound after a very long outage.
        next_at: The next firing; None when there is none.
    """

    model_config = ConfigDict(frozen=True)

    now: datetime
    due: list[datetime] = []
    missed: int = 0
    next_at: datetime | None = None


def next_firing(spec: ScheduleSpec, after: datetime, anchor: datetime) -> datetime | None:
    """Return the first firing strictly after a time, in UTC; intervals count from ``anchor`` if there is no start."""
    return next(_occurrences(spec, after, anchor), None)


def decide_firing(spec: ScheduleSpec, planned: datetime, now: datetime, anchor: datetime) -> FiringDecision:
    """Decide which planned times to run at a firing that may be late; an early one, by clock skew, is on time."""
    now = max(now.astimezone(UTC), planned.astimezone(UTC))
    limit = spec.catch_up_limit if spec.catch_up is CatchUp.ALL else 1
    latest, count = _latest_between(spec, planned, now, anchor, limit)
    due = [planned.astimezone(UTC), *latest][-limit:]
    if spec.catch_up is CatchUp.SKIP and now - due[-1] > spec.tolerance:
        due = []
    return FiringDecision(now=now, due=due, missed=count + 1 - len(due), next_at=next_firing(spec, now, anchor))


def format_utc(time: datetime) -> str:
    """Return a time as text in UTC, for example ``2026-11-24T02:00:00Z``."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _latest_between(
    spec: ScheduleSpec, after: datetime, until: datetime, anchor: datetime, limit: int
) -> tuple[list[datetime], int]:
    """Return the latest occurrences in an interval, and the number of all of them."""
    if spec.every is not None:
        return _latest_of_interval(spec, after, until, anchor, limit)
    if spec.end is not None:
        until = min(until, spec.end)
    latest: deque[datetime] = deque(maxlen=limit)
    for count, occurrence in enumerate(_occurrences(spec, after, anchor)):
        if occurrence > until:
            return list(latest), count
        if count == _MAX_COUNTED:
            break
        latest.append(occurrence)
    else:
        return list(latest), len(latest)  # the schedule ended before
    latest.clear()
    for occurrence in _occurrences(spec, max(after, _search_start(spec, until, limit)), anchor):
        if occurrence > until:
            break
        latest.append(occurrence)
    return list(latest), max(_MAX_COUNTED, len(latest))


def _search_start(spec: ScheduleSpec, until: datetime, limit: int) -> datetime:
    """Return a time shortly before the last firings of a cron expression."""
    start = until
    # Backwards, cronsim may shift occurrences near a change of the clocks. The margin below covers that.
    backwards = _cron(spec.cron or "", until.astimezone(ZoneInfo(spec.timezone)), reverse=True)
    for occurrence in islice(backwards, limit + 2):
        start = occurrence.astimezone(UTC)
    return start - timedelta(hours=3)


def _latest_of_interval(
    spec: ScheduleSpec, after: datetime, until: datetime, anchor: datetime, limit: int
) -> tuple[list[datetime], int]:
    first = next_firing(spec, after, anchor)
    last = until if spec.end is None else min(until, spec.end)
    if spec.every is None or first is None or first > last:
        return [], 0
    count = (last - first) // spec.every + 1
    return [first + spec.every * number for number in range(max(0, count - limit), count)], count


def _occurrences(spec: ScheduleSpec, after: datetime, anchor: datetime) -> Iterator[datetime]:
    """Yield the firings after a time, in order and in UTC."""
    after = after.astimezone(UTC)
    firings = _interval_firings(spec, after, anchor) if spec.every is not None else _cron_firings(spec, after)
    for firing in firings:
        if spec.end is not None and firing > spec.end:
            return
        yield firing


def _interval_firings(spec: ScheduleSpec, after: datetime, anchor: datetime) -> Iterator[datetime]:
    if spec.every is None:
        return
    begin = (spec.start or anchor).astimezone(UTC)
    # The configured start is a firing, the creation time is not.
    number = max((after - begin) // spec.every + 1, 0 if spec.start is not None else 1)
    while True:
        yield begin + spec.every * number
        number += 1


def _cron_firings(spec: ScheduleSpec, after: datetime) -> Iterator[datetime]:
    if spec.cron is None:
        return
    if spec.start is not None:
        after = max(after, spec.start.astimezone(UTC) - timedelta(microseconds=1))
    for local in _cron(spec.cron, after.astimezone(ZoneInfo(spec.timezone))):
        firing = local.astimezone(UTC)
        # cronsim always begins in the first pass of a repeated hour.
        if firing > after:
            after = firing
            yield firing


def _cron(expression: str, after: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    return iter(CronSim(_MACROS.get(expression.lower(), expression), after.replace(microsecond=0), reverse=reverse))

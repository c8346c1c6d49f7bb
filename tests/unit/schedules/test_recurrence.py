"""Planned times of schedules, and decisions on missed firings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perdure._runtime.serdes import invalid_input
from perdure.schedules import recurrence
from perdure.schedules.recurrence import (
    CatchUp,
    Overlap,
    ScheduledTarget,
    ScheduleSpec,
    decide_firing,
    format_utc,
    next_firing,
)

BUILD = ScheduledTarget(service="Reports", handler="build")
VIENNA = ZoneInfo("Europe/Vienna")
MINUTE = timedelta(minutes=1)
ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)


def spec(**timing: Any) -> ScheduleSpec:
    return ScheduleSpec(target=BUILD, **{"overlap": Overlap.ALLOW, **timing})


def firings(of: ScheduleSpec, after: datetime, count: int) -> list[datetime]:
    found: list[datetime] = []
    while len(found) < count and (after_ := next_firing(of, found[-1] if found else after, ANCHOR)) is not None:
        found.append(after_)
    return found


def local(moment: datetime | None, zone: ZoneInfo = VIENNA) -> str:
    assert moment is not None
    return moment.astimezone(zone).isoformat()


# --- cron and daylight saving time -----------------------------------------------------------------------------------


def test_skipped_daily_time_fires_after_gap():
    nightly = spec(cron="30 2 * * *", timezone="Europe/Vienna")
    found = firings(nightly, datetime(2026, 3, 28, 0, 0, tzinfo=VIENNA), 3)
    assert [local(each) for each in found] == [
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:00:00+02:00",  # 02:00 to 03:00 is skipped
        "2026-03-30T02:30:00+02:00",
    ]


def test_repeated_daily_time_fires_once():
    nightly = spec(cron="30 2 * * *", timezone="Europe/Vienna")
    found = firings(nightly, datetime(2026, 10, 24, 12, 0, tzinfo=VIENNA), 2)
    assert [local(each) for each in found] == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    between = datetime(2026, 10, 25, 2, 10, fold=1, tzinfo=VIENNA)  # in the hour's second pass
    assert local(next_firing(nightly, between, ANCHOR)) == "2026-10-26T02:30:00+01:00"


def test_hourly_expression_follows_elapsed_time():
    hourly = spec(cron="30 * * * *", timezone="Europe/Vienna")
    found = firings(hourly, datetime(2026, 10, 25, 0, 0, tzinfo=VIENNA), 6)
    assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(hours=1)}
    spring = firings(hourly, datetime(2026, 3, 29, 0, 0, tzinfo=VIENNA), 3)
    assert [local(each) for each in spring] == [
        "2026-03-29T00:30:00+01:00",
        "2026-03-29T01:30:00+01:00",
        "2026-03-29T03:30:00+02:00",
    ]


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 9 * * MON-FRI", "2026-11-27T12:00:00Z", "2026-11-30T09:00:00Z"),
        ("0 0 L * *", "2026-02-01T00:00:00Z", "2026-02-28T00:00:00Z"),
        ("0 0 13 * FRI", "2026-11-01T00:00:00Z", "2026-11-06T00:00:00Z"),  # day of month or day of week
        ("*/15 * * * *", "2026-11-24T10:15:00Z", "2026-11-24T10:30:00Z"),  # the next firing is after the given time
        ("* * * * * *", "2026-11-24T10:15:00.5Z", "2026-11-24T10:15:01Z"),
        ("0 0 29 2 *", "2026-11-24T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("@Daily", "2026-11-24T10:15:00Z", "2026-11-25T00:00:00Z"),
        ("@hourly", "2026-11-24T10:15:00Z", "2026-11-24T11:00:00Z"),
    ],
)
def test_cron_expressions_match_debian_cron(expression, after, expected):
    found = next_firing(spec(cron=expression), datetime.fromisoformat(after), ANCHOR)
    assert found == datetime.fromisoformat(expected)


expressions = st.sampled_from(
    [
        "30 2 * * *",
        "15 2,3 * * *",
        "*/20 * * * *",
        "30 * * * *",
        "0 0 * * 0",
        "0 0 1 * *",
        "7 */5 * * *",
        "0 30 2 * * *",
    ]
)
zones = st.sampled_from(["UTC", "Europe/Vienna", "America/New_York", "America/Santiago", "Australia/Lord_Howe"])
moments = st.integers(0, 4 * 366 * 86_400).map(
    lambda second: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
)


@given(expressions, zones, moments)
@example("45 2 * * *", "Europe/Vienna", datetime(2026, 10, 25, 1, 30, tzinfo=UTC))
def test_firings_are_ordered_and_complete(expression, zone, moment):
    timing = spec(cron=expression, timezone=zone)
    found = firings(timing, moment, 4)
    assert found == sorted(set(found))
    assert found[0] > moment
    for number in range(1, 4):
        just_before = found[number] - timedelta(seconds=1)
        assert next_firing(timing, just_before, ANCHOR) == found[number]


# --- intervals -------------------------------------------------------------------------------------------------------


@given(
    every=st.timedeltas(timedelta(milliseconds=10), timedelta(days=40)),
    moment=moments,
    start=st.none() | moments,
)
def test_interval_keeps_phase(every, moment, start):
    timing = spec(every=every, start=start)
    found = next_firing(timing, moment, ANCHOR)
    begin = ANCHOR if start is None else start
    assert found is not None
    assert (found - begin) % every == timedelta(0)
    assert moment < found
    assert found - moment <= every or found == begin + (timedelta(0) if start else every)


def test_no_firing_outside_start_and_end():
    start, end = datetime(2026, 5, 1, 9, tzinfo=VIENNA), datetime(2026, 5, 3, 9, tzinfo=VIENNA)
    daily = spec(cron="0 9 * * *", timezone="Europe/Vienna", start=start, end=end)
    assert firings(daily, ANCHOR, 9) == [start + timedelta(days=number) for number in range(3)]
    two_hours = spec(every=timedelta(hours=2), start=start, end=start + timedelta(hours=5))
    assert firings(two_hours, ANCHOR, 9) == [start + timedelta(hours=hour) for hour in (0, 2, 4)]
    assert next_firing(two_hours, end, ANCHOR) is None


# --- missed firings -------------------------------------------------------------------------------------------------


def test_firing_on_time_runs_under_each_policy():
    planned = datetime(2026, 11, 24, 2, tzinfo=UTC)
    for policy in CatchUp:
        nightly = spec(cron="0 2 * * *", catch_up=policy)
        found = decide_firing(nightly, planned, planned + timedelta(seconds=59), ANCHOR)
        assert (found.due, found.missed, found.next_at) == ([planned], 0, planned + timedelta(days=1))


@pytest.mark.parametrize(
    ("policy", "due", "missed"),
    [(CatchUp.SKIP, [], 3), (CatchUp.LATEST, [26], 2), (CatchUp.ALL, [25, 26], 1)],
)
def test_catch_up_policy_after_outage(policy, due, missed):
    nightly = spec(cron="0 2 * * *", catch_up=policy, catch_up_limit=2)
    planned, now = datetime(2026, 11, 24, 2, tzinfo=UTC), datetime(2026, 11, 26, 9, tzinfo=UTC)
    found = decide_firing(nightly, planned, now, ANCHOR)
    assert found.due == [datetime(2026, 11, day, 2, tzinfo=UTC) for day in due]
    assert (found.missed, found.next_at) == (missed, datetime(2026, 11, 27, 2, tzinfo=UTC))


def test_early_firing_counts_as_on_time():
    planned = datetime(2026, 11, 24, 2, tzinfo=UTC)
    found = decide_firing(spec(cron="0 2 * * *"), planned, planned - timedelta(seconds=3), ANCHOR)
    assert (found.due, found.next_at) == ([planned], planned + timedelta(days=1))


def test_long_outage_of_frequent_schedule():
    planned = datetime(2020, 1, 1, tzinfo=UTC)
    now = datetime(2026, 11, 24, 10, 15, 30, 250_000, tzinfo=UTC)
    each_second = spec(cron="* * * * * *", catch_up=CatchUp.ALL, catch_up_limit=90)
    found = decide_firing(each_second, planned, now, ANCHOR)
    last = now.replace(microsecond=0)
    assert found.due == [last - timedelta(seconds=back) for back in reversed(range(90))]
    assert found.missed >= 4_900
    monthly = spec(cron="0 0 1 * *", catch_up=CatchUp.LATEST)
    assert decide_firing(monthly, planned, now, ANCHOR).due == [datetime(2026, 11, 1, tzinfo=UTC)]
    ended = spec(cron="* * * * * *", catch_up=CatchUp.LATEST, end=datetime(2020, 3, 1, tzinfo=UTC))
    over = decide_firing(ended, planned, now, ANCHOR)
    assert (over.due, over.next_at) == ([datetime(2020, 3, 1, tzinfo=UTC)], None)
    tenths = spec(every=timedelta(milliseconds=100), catch_up=CatchUp.ALL, catch_up_limit=3, start=planned)
    found = decide_firing(tenths, planned, now, ANCHOR)
    latest = now.replace(microsecond=200_000)
    assert found.due == [latest - timedelta(milliseconds=100 * back) for back in (2, 1, 0)]
    assert found.missed + 3 == (latest - planned) // timedelta(milliseconds=100) + 1


late_ones = st.fixed_dictionaries(
    {
        "cron": st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 0 * * 1", "*/20 2 * * *"]),
        "timezone": zones,
        "catch_up": st.sampled_from(CatchUp),
        "catch_up_limit": st.integers(1, 5),
    }
)


@settings(max_examples=60)
@given(late_ones, moments, st.timedeltas(timedelta(0), timedelta(days=2)), st.booleans())
@example(
    {"cron": "30 2 * * *", "timezone": "Europe/Vienna", "catch_up": CatchUp.ALL, "catch_up_limit": 3},
    datetime(2026, 3, 26, 3, tzinfo=UTC),
    timedelta(days=5),
    True,
)
@example(
    {"cron": "*/20 2 * * *", "timezone": "Europe/Vienna", "catch_up": CatchUp.ALL, "catch_up_limit": 5},
    datetime(2026, 10, 23, 3, tzinfo=UTC),
    timedelta(days=2),
    True,
)
def test_planned_times_run_or_count_as_missed(of, begin, late, long):
    timing = spec(**of)
    planned = next_firing(timing, begin, ANCHOR)
    assert planned is not None
    now = planned + late
    every = [planned]
    while (following := next_firing(timing, every[-1], ANCHOR)) is not None and following <= now:
        every.append(following)
    with pytest.MonkeyPatch.context() as patched:
        if long:  # simulate an outage too long to count its firings
            patched.setattr(recurrence, "_MAX_COUNTED", 0)
        found = decide_firing(timing, planned, now, ANCHOR)
    assert found.due == every[len(every) - len(found.due) :]
    assert found.next_at is not None
    assert found.next_at > now
    if not long:
        assert len(found.due) + found.missed == len(every)
    if timing.catch_up is CatchUp.ALL:
        assert len(found.due) == min(timing.catch_up_limit, len(every))
    elif timing.catch_up is CatchUp.LATEST:
        assert len(found.due) == 1
    else:
        assert bool(found.due) == (now - every[-1] <= MINUTE)


# --- times out of range ----------------------------------------------------------------------------------------------


def zone(minutes: int) -> timezone:
    return timezone(timedelta(minutes=minutes))


any_time = st.datetimes(timezones=st.integers(-1439, 1439).map(zone))
FIELDS = ("start", "end", "every", "tolerance")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "start": any_time.map(datetime.isoformat) | st.floats() | st.integers() | st.text(),
            "end": any_time.map(datetime.isoformat) | st.floats() | st.integers(),
            "tolerance": st.timedeltas() | st.floats() | st.integers(),
        },
    ),
    st.none() | st.timedeltas() | st.floats() | st.integers(),
    st.sampled_from(["* * * * *", "0 0 29 2 *", "30 2 * * *"]),
    st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650)),
)
@example({"start": datetime.min.replace(tzinfo=zone(840)).isoformat()}, MINUTE, "", MINUTE)
@example({"end": datetime.max.replace(tzinfo=zone(-840)).isoformat()}, MINUTE, "", MINUTE)
@example({"start": "2999-12-31T23:59:59Z"}, recurrence.MAX_INTERVAL, "", MINUTE)
@example({"start": 1764540000000000}, None, "* * * * *", MINUTE)
def test_times_are_usable_or_name_their_field(timing, every, cron, late):
    try:
        found = spec(**timing, **({"cron": cron, "timezone": "Europe/Vienna"} if every is None else {"every": every}))
    except ValidationError as error:
        refused = invalid_input(error)
    else:
        refused = None
    if refused is not None:
        assert refused.metadata is not None
        assert refused.metadata["field"] in FIELDS
        return
    first = next_firing(found, ANCHOR, ANCHOR)
    if first is not None:
        decision = decide_firing(found, first, first + late, ANCHOR)
        assert decision.next_at is None or decision.next_at > first
        assert format_utc(first).endswith("Z")


def test_reject_start_that_clocks_skip():
    with pytest.raises(ValidationError, match=r"does not exist in Europe/Vienna"):
        spec(every=MINUTE, start=datetime(2026, 3, 29, 2, 30, tzinfo=VIENNA))
    repeated = datetime(2026, 10, 25, 2, 30, tzinfo=VIENNA, fold=1)
    assert spec(every=MINUTE, start=repeated).start == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


# --- invalid specifications -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({}, "either a cron expression or an interval"),
        ({"cron": "* * * * *", "every": MINUTE}, "either a cron expression or an interval"),
        ({"cron": "* * * *"}, "'\\* \\* \\* \\*' is not a cron expression: wrong number of fields"),
        ({"cron": "0 25 * * *"}, "bad hour"),
        ({"cron": "0 0 31 2 *"}, "bad day-of-month"),
        ({"cron": "0 0 * 2 MON#5", "start": ANCHOR, "end": ANCHOR - MINUTE}, "is before the start"),
        ({"every": timedelta(milliseconds=9)}, "at least 10 ms, got 9 ms"),
        ({"cron": "* * * * *", "timezone": "Vienna"}, "'Vienna' is not a time zone"),
        ({"cron": "* * * * *", "timezone": "../UTC"}, "is not a time zone"),
        ({"cron": "* * * * *", "timezone": "Europe"}, "is not a time zone"),
        ({"every": MINUTE, "start": ANCHOR.replace(tzinfo=None)}, "timezone"),
        ({"every": MINUTE, "catch_up_limit": 101}, "100"),
        ({"every": MINUTE, "catch_up": "all", "overlap": "skip"}, "requires overlap 'allow'"),
    ],
)
def test_reject_invalid_specification(wrong, problem):
    with pytest.raises(ValidationError, match=problem):
        spec(**wrong)


def test_key_placeholders_are_substituted():
    planned = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)
    target = ScheduledTarget(service="Closing", handler="run", key="{schedule} {date} {planned} {other}")
    assert target.resolve_key("daily", planned, "Europe/Vienna") == "daily 2026-11-25 2026-11-24T23:30:00Z {other}"
    assert BUILD.resolve_key("daily", planned, "UTC") is None
    assert format_utc(planned + timedelta(milliseconds=100)) == "2026-11-24T23:30:00.100000Z"


def test_specification_survives_json():
    one = spec(cron="0 2 * * *", timezone="Europe/Vienna", payload={"a": [1, None]}, start=ANCHOR)
    assert ScheduleSpec.model_validate_json(one.model_dump_json()) == one
    assert (one.timing, spec(every=MINUTE).timing) == ("0 2 * * * (Europe/Vienna)", "every 60 s")

"""Waits that HTTP responses ask for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from hypothesis import example, given
from hypothesis import strategies as st

from perdure._runtime.retry_after import retry_after

MINUTE = timedelta(minutes=1)
NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


@given(st.integers(0, 10**30))
def test_seconds_are_limited(seconds: int):
    assert retry_after({"retry-after": f" {seconds} "}, MINUTE) == min(timedelta(seconds=min(seconds, 60)), MINUTE)


@given(st.integers(-(10**6), 10**6))
def test_date_counts_from_the_response(seconds: int):
    until = NOW + timedelta(seconds=seconds)
    headers = {"retry-after": format_datetime(until, usegmt=True), "date": format_datetime(NOW, usegmt=True)}
    assert retry_after(headers, MINUTE) == timedelta(seconds=min(max(seconds, 0), 60))


def test_date_without_response_date_counts_from_now():
    until = datetime.now(UTC) + timedelta(seconds=30)
    found = retry_after({"retry-after": format_datetime(until, usegmt=True)}, MINUTE)
    assert found is not None
    assert timedelta(seconds=20) < found <= timedelta(seconds=31)


@given(st.text() | st.sampled_from(["-1", "1e9", "nan", "soon", "1.5", "٣", "Mon, 30 Nov 99999 00:00:00 GMT"]))
@example("Fri, 31 Dec 9999 23:59:59 -1400")
@example("Mon, 01 Jan 0001 00:00:00 +1400")
def test_any_text_is_in_range_or_ignored(text: str):
    found = retry_after({"retry-after": text}, MINUTE)
    assert found is None or timedelta(0) <= found <= MINUTE


def test_no_header_asks_for_nothing():
    assert retry_after({}, MINUTE) is None

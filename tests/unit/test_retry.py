"""RetryPolicy: validation, delays and the SDK's forms."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from restate.serde import BytesSerde

from perdure import RunConfig, SagaConfig
from perdure._runtime.time_scale import scaled, scaling
from perdure.errors import ConfigurationError
from perdure.retry import RetryPolicy

SECOND = timedelta(seconds=1)
LONGEST = timedelta(seconds=30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_attempts": 0}, "RetryPolicy.max_attempts must be 1 or more, or None; got 0"),
        ({"initial_interval": timedelta(0)}, "1 ms <= initial_interval <= max_interval"),
        ({"initial_interval": LONGEST, "max_interval": SECOND}, "1 ms <= initial_interval <= max_interval"),
        ({"factor": 0.5}, "RetryPolicy.factor must be 1 or more, and finite; got 0.5"),
        ({"factor": math.nan}, "RetryPolicy.factor must be 1 or more, and finite; got nan"),
        ({"max_duration": timedelta(0)}, "RetryPolicy.max_duration must be 1 ms or more, or None"),
    ],
)
def test_reject_invalid_policy(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        RetryPolicy(**settings)


@given(st.integers(1, 5_000), st.floats(1, 1e6), st.integers(1, 30_000))
def test_delays_grow_up_to_limit(failures, factor, first):
    policy = RetryPolicy(timedelta(milliseconds=first), factor, LONGEST, None)
    assert policy.initial_interval <= policy.delay_after(failures) <= policy.delay_after(failures + 1) <= LONGEST


def test_permit_attempts_up_to_limit():
    assert [RetryPolicy(max_attempts=2).permits(failures) for failures in (1, 2, 3)] == [True, False, False]
    assert RetryPolicy(max_attempts=None).permits(1_000_000)


INTERVALS = st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(minutes=10))


def last_attempt(policy: RetryPolicy) -> tuple[int, timedelta]:
    """Return the number and the time of the last attempt, if each attempt fails at once."""
    failures, elapsed = 1, timedelta(0)
    while policy.permits(failures, elapsed):
        elapsed += policy.delay_after(failures)
        failures += 1
    return failures, elapsed


@given(INTERVALS, st.floats(1, 10), INTERVALS, st.timedeltas(min_value=SECOND, max_value=timedelta(hours=1)))
def test_policy_exhausts_when_duration_ends(first, factor, longest, duration):
    policy = RetryPolicy(first, factor, max(first, longest), None, max(duration, max(first, longest) / 50))
    _, elapsed = last_attempt(policy)
    assert policy.max_duration is not None
    assert policy.max_duration <= elapsed <= policy.max_duration + policy.max_interval


@given(INTERVALS, st.integers(1, 200))
def test_policy_exhausts_after_attempts_or_duration(first, attempts):
    longest = max(first, LONGEST)
    assert last_attempt(RetryPolicy(first, 2, longest, attempts))[0] == attempts
    failures, elapsed = last_attempt(RetryPolicy(first, 2, longest, attempts, LONGEST))
    assert failures == attempts or elapsed >= LONGEST
    assert failures <= attempts


def test_defaults_ride_out_outages():
    run, compensation = RunConfig("charge").retry, SagaConfig().transient_retry
    for policy, outage in ((run, timedelta(minutes=5)), (compensation, timedelta(days=1))):
        assert last_attempt(policy)[1] >= outage
    assert run.max_interval == timedelta(seconds=10)
    assert compensation.max_interval == timedelta(seconds=20)


@given(st.floats(0.1, 10_000))
def test_time_scale_shortens_runs(scale):
    policy = RetryPolicy(SECOND, 2.0, LONGEST, None, timedelta(minutes=5))
    with scaling(scale):
        options = policy.for_runs(BytesSerde())
        assert options.max_duration == scaled(timedelta(minutes=5))
        assert (options.initial_retry_interval, options.max_retry_interval) == (scaled(SECOND), scaled(LONGEST))


def test_convert_policy_for_invocations():
    policy = RetryPolicy(SECOND, 3.0, LONGEST, 5).for_invocations("kill")
    assert (policy.initial_interval, policy.exponentiation_factor, policy.max_interval) == (SECOND, 3.0, LONGEST)
    assert (policy.max_attempts, policy.on_max_attempts) == (5, "kill")


def test_invocations_reject_max_duration():
    with pytest.raises(ConfigurationError, match="limit invocations by max_attempts"):
        RetryPolicy(max_duration=SECOND).for_invocations()


def test_convert_policy_for_runs():
    options = RetryPolicy(SECOND, 3.0, LONGEST, 5, LONGEST).for_runs(BytesSerde())
    assert (options.initial_retry_interval, options.retry_interval_factor) == (SECOND, 3.0)
    assert (options.max_retry_interval, options.max_attempts, options.max_duration) == (LONGEST, 5, LONGEST)

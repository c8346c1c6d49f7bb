"""Validation of RunConfig. tests/integration/test_runs.py tests runs."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from perdure import RunConfig
from perdure.errors import ConfigurationError, error_code

ONE = timedelta(seconds=1)


def test_default_settings():
    config = RunConfig("charge")
    assert (config.max_retries, config.initial_delay, config.max_delay, config.backoff_factor) == (
        None,
        timedelta(milliseconds=100),
        timedelta(seconds=10),
        2.0,
    )
    assert config.max_duration == timedelta(minutes=5)


@pytest.mark.parametrize("limit", [{"max_retries": 0}, {"max_retries": 40, "max_delay": timedelta(hours=1)}])
def test_given_retries_replace_default_duration(limit):
    assert RunConfig("charge", **limit).named("refund").max_duration is None
    both = RunConfig("charge", **limit, max_duration=timedelta(minutes=5)).named("refund")
    assert both.max_duration == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_retries": -1}, "max_retries must be 0 or more, or None; got -1"),
        ({"initial_delay": timedelta(0)}, "1 ms <= initial_delay <= max_delay"),
        ({"initial_delay": -ONE}, "1 ms <= initial_delay <= max_delay"),
        ({"initial_delay": timedelta(microseconds=999)}, "1 ms <= initial_delay"),
        ({"initial_delay": 2 * ONE, "max_delay": ONE}, "1 ms <= initial_delay <= max_delay"),
        ({"backoff_factor": 0.9}, "backoff_factor must be 1 or more, and finite; got 0.9"),
        ({"backoff_factor": math.nan}, "backoff_factor must be 1 or more"),
        ({"backoff_factor": math.inf}, "backoff_factor must be 1 or more"),
        ({"max_duration": timedelta(0)}, "max_duration must be 1 ms or more"),
        ({"max_duration": -ONE}, "max_duration must be 1 ms or more"),
    ],
)
def test_reject_value_out_of_range(settings, text):
    with pytest.raises(ConfigurationError, match=text):
        RunConfig("charge", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_retries": 0},
        {"max_retries": None, "max_duration": None},
        {"initial_delay": ONE, "max_delay": ONE},
        {"backoff_factor": 1},
        {"max_duration": ONE},
    ],
)
def test_accept_boundary_values(settings):
    RunConfig("charge", **settings)


def test_renamed_config_keeps_settings():
    config = RunConfig("a", max_retries=7, max_duration=ONE)
    assert config.named("b") == RunConfig("b", max_retries=7, max_duration=ONE)
    assert config.name == "a"


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [
        ({}, "300 s"),
        ({"max_retries": 0}, "1 attempts"),
        ({"max_retries": None, "max_duration": ONE}, "1 s"),
        ({"max_retries": 3, "max_duration": ONE}, "4 attempts or 1 s"),
        ({"max_retries": None, "max_duration": None}, "the invocation's own attempts"),
    ],
)
def test_exhausted_run_names_limits_and_cause(settings, bounds):
    error = RunConfig("charge", **settings).exhausted("OSError('gone')")
    assert error.message == f"run exhausted retries ({bounds}) for charge: OSError('gone')"
    assert (error.status_code, error_code(error)) == (500, "run_exhausted")
    assert (error.metadata or {})["run"] == "charge"

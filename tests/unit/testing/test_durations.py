"""Scaled time: one seam, exact when it's off, never backwards, refused where people would notice."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perdure._runtime.time_scale as scale_module
from perdure._runtime.time_scale import TIME_SCALE_SETTING, refuse_scaled_time, scaled, scaling, time_scale
from perdure.errors import ConfigurationError, InvalidInput
from perdure.security import PrivateKey
from perdure.security.config import SecurityConfig

KEY = PrivateKey.generate().public.id

spans = st.timedeltas(min_value=timedelta(days=-400), max_value=timedelta(days=4000))
scales = st.floats(min_value=1e-3, max_value=1e9)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(TIME_SCALE_SETTING, raising=False)
    monkeypatch.setattr(scale_module, "_scale", None)


@settings(deadline=None)
@given(spans)
def test_without_a_scale_durations_are_as_configured(duration):
    assert scaled(duration) == duration


def test_an_hour_lasts_a_second_under_the_scale_3600_and_an_hour_again_afterwards():
    with scaling(3600):
        assert scaled(timedelta(hours=1)) == timedelta(seconds=1)
        with scaling(60):
            assert scaled(timedelta(hours=1)) == timedelta(minutes=1)
        assert time_scale() == 3600
    assert scaled(timedelta(hours=1)) == timedelta(hours=1)


@settings(deadline=None)
@given(spans, spans, scales)
def test_later_stays_later_and_what_has_passed_stays_passed(one, other, scale):
    earlier, later = sorted((one, other))
    with scaling(scale):
        assert scaled(earlier) <= scaled(later)
        assert (scaled(later) > timedelta(0)) == (later > timedelta(0))
        if later > timedelta(0):
            assert scaled(later) >= timedelta(milliseconds=1)  # what the engine counts in


def test_a_process_reads_the_scale_from_its_environment_once(monkeypatch):
    monkeypatch.setenv(TIME_SCALE_SETTING, "60")
    assert scaled(timedelta(minutes=1)) == timedelta(seconds=1)
    monkeypatch.setenv(TIME_SCALE_SETTING, "1")
    assert scaled(timedelta(minutes=1)) == timedelta(seconds=1)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast"])
def test_a_scale_that_makes_no_sense_is_refused(monkeypatch, text):
    monkeypatch.setenv(TIME_SCALE_SETTING, text)
    with pytest.raises(ConfigurationError, match=f"{TIME_SCALE_SETTING} must be a number above 0, got"):
        time_scale()


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_scaling_refuses_it_too(scale):
    with pytest.raises(ConfigurationError, match="must be a number above 0"), scaling(scale):
        pass


def test_production_refuses_a_scale(monkeypatch):
    monkeypatch.setenv(TIME_SCALE_SETTING, "60")
    with pytest.raises(ConfigurationError, match="by 60, which is for tests only: unset it for a service"):
        refuse_scaled_time("a service in production")

    with pytest.raises(ConfigurationError, match="divides all durations by 60"):
        SecurityConfig(signing_keys=(KEY,)).check_start()  # what each process that serves in production goes through
    SecurityConfig.development().check_start()


def test_production_takes_real_time():
    refuse_scaled_time("a service in production")
    SecurityConfig(signing_keys=(KEY,)).check_start()


@pytest.mark.parametrize(("given", "said"), [(5, r"timedelta\(seconds=5\); got 5"), ("5s", "got str")])
def test_what_is_no_duration_is_refused_with_what_to_write(given, said):
    with pytest.raises(InvalidInput, match=f"a duration must be a timedelta, such as .*{said}"):
        scaled(given)

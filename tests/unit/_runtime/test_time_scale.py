"""Time scale of tests: exact at scale 1, and refused in production."""

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
def test_default_scale_keeps_durations(duration):
    assert scaled(duration) == duration


def test_scale_applies_within_block():
    with scaling(3600):
        assert scaled(timedelta(hours=1)) == timedelta(seconds=1)
        with scaling(60):
            assert scaled(timedelta(hours=1)) == timedelta(minutes=1)
        assert time_scale() == 3600
    assert scaled(timedelta(hours=1)) == timedelta(hours=1)


@settings(deadline=None)
@given(spans, spans, scales)
def test_scaled_durations_keep_order_and_sign(one, other, scale):
    earlier, later = sorted((one, other))
    with scaling(scale):
        assert scaled(earlier) <= scaled(later)
        assert (scaled(later) > timedelta(0)) == (later > timedelta(0))
        if later > timedelta(0):
            assert scaled(later) >= timedelta(milliseconds=1)  # the engine's unit


def test_read_scale_from_environment_once(monkeypatch):
    monkeypatch.setenv(TIME_SCALE_SETTING, "60")
    assert scaled(timedelta(minutes=1)) == timedelta(seconds=1)
    monkeypatch.setenv(TIME_SCALE_SETTING, "1")
    assert scaled(timedelta(minutes=1)) == timedelta(seconds=1)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast"])
def test_reject_invalid_scale_of_environment(monkeypatch, text):
    monkeypatch.setenv(TIME_SCALE_SETTING, text)
    with pytest.raises(ConfigurationError, match=f"{TIME_SCALE_SETTING} must be a number above 0, got"):
        time_scale()


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_reject_invalid_scale_of_block(scale):
    with pytest.raises(ConfigurationError, match="must be a number above 0"), scaling(scale):
        pass


def test_production_rejects_time_scale(monkeypatch):
    monkeypatch.setenv(TIME_SCALE_SETTING, "60")
    with pytest.raises(ConfigurationError, match="by 60, which is for tests only: unset it for a service"):
        refuse_scaled_time("a service in production")

    with pytest.raises(ConfigurationError, match="divides all durations by 60"):
        SecurityConfig(signing_keys=(KEY,)).check_start()  # production processes call this
    SecurityConfig.development().check_start()


def test_production_accepts_scale_one():
    refuse_scaled_time("a service in production")
    SecurityConfig(signing_keys=(KEY,)).check_start()


@pytest.mark.parametrize(("given", "said"), [(5, r"timedelta\(seconds=5\); got 5"), ("5s", "got str")])
def test_reject_value_without_unit(given, said):
    with pytest.raises(InvalidInput, match=f"a duration must be a timedelta, such as .*{said}"):
        scaled(given)

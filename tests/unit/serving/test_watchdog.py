"""The setting of the watchdog. Its effects on a process are in ``tests/integration/test_serving_hangs.py``."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ConfigurationError
from perdure.serving.watchdog import effective_limit

LIMIT = timedelta(seconds=30)


@given(st.floats(min_value=0.001, max_value=1_000_000))
def test_environment_has_precedence(seconds: float):
    assert effective_limit(LIMIT, {"PERDURE_HANG_LIMIT": repr(seconds)}) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["0", "0.0", "-0"])
def test_zero_turns_watchdog_off(text: str):
    assert effective_limit(LIMIT, {"PERDURE_HANG_LIMIT": text}) is None


@pytest.mark.parametrize(("default", "limit"), [(LIMIT, LIMIT), (None, None), (timedelta(0), None)])
def test_default_applies_without_setting(default: timedelta | None, limit: timedelta | None):
    assert effective_limit(default, {}) == limit
    assert effective_limit(default, {"PERDURE_HANG_LIMIT": ""}) == limit


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "1e300", "30s"])
def test_reject_invalid_setting(text: str):
    with pytest.raises(ConfigurationError, match="PERDURE_HANG_LIMIT="):
        effective_limit(LIMIT, {"PERDURE_HANG_LIMIT": text})


def test_reject_negative_default():
    with pytest.raises(ConfigurationError, match="hang_limit=-1 day"):
        effective_limit(timedelta(days=-1), {})

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from tests.system.chaos.soak import Series

levels = st.floats(min_value=1, max_value=10_000)


def series(*quarters: float, samples: int = 20) -> Series:
    values = [(float(samples * index + step), level) for index, level in enumerate(quarters) for step in range(samples)]
    return Series("memory", "MiB", 4.0, values)


@given(first=levels, level=levels)
def test_filling_caches_is_no_growth(first, level):
    assert not series(first, level, level, level).grows


@given(second=levels, last=levels)
def test_growth_beyond_allowance_is_found(second, last):
    allowed = second * 1.1 + 4.0
    assume(abs(last - allowed) > 1e-6)
    assert series(1.0, second, second, last).grows is (last > allowed)


@given(peak=levels)
def test_single_peak_is_no_growth(peak):
    flat = series(10.0, 10.0, 10.0, 10.0)
    flat.values[-3] = (flat.values[-3][0], peak)
    assert not flat.grows


def test_too_few_values_are_no_growth():
    assert not Series("memory", "MiB", 4.0, []).grows
    assert not Series("memory", "MiB", 4.0, [(0.0, 1.0)]).grows
    assert str(Series("memory", "MiB", 4.0, [])) == "memory: too few values"

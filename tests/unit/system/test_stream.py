from __future__ import annotations

import pytest

from tests.system.scenarios.load import Stream


@pytest.mark.parametrize(
    ("ends", "pause"),
    [
        ([], 10.0),
        ([1.0, 2.0, 9.0], 7.0),
        ([1.0, 9.5], 8.5),
        ([4.0], 6.0),  # from the last confirmation to the end
        ([6.0], 6.0),  # from the start to the first confirmation
        ([-5.0, 5.0, 15.0], 5.0),  # confirmations outside the interval do not count
    ],
)
def test_longest_pause_between_trips(ends: list[float], pause: float) -> None:
    stream = Stream("trip", [])
    stream.ends.extend(ends)
    assert stream.pause(0.0, 10.0) == pause

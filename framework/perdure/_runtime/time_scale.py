"""Time scale: divides the durations of Perdure in tests.

Each duration passes `scaled` once, where it reaches the engine or a clock: a durable sleep, the delay of a send, a
deadline (``now + scaled(timeout)``). The time until a deadline is therefore scaled already. The scale 3600 turns an
hour into a second. The default is 1, and production (`SecurityConfig`) refuses another scale.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from perdure._runtime.checks import describe_mismatch
from perdure.errors import ConfigurationError, InvalidInput

TIME_SCALE_SETTING: Final = "PERDURE_TIME_SCALE"
"""Environment variable with the scale, for processes that a test starts."""

_SHORTEST: Final = timedelta(milliseconds=1)  # the engine counts in milliseconds, and later must stay later

_scale: float | None = None


def time_scale() -> float:
    """Return the scale of this process. Raises ConfigurationError if PERDURE_TIME_SCALE is not a number above 0."""
    global _scale  # noqa: PLW0603 - read once per process
    if _scale is None:
        _scale = _read(os.environ.get(TIME_SCALE_SETTING, ""))
    return _scale


def scaled(duration: timedelta) -> timedelta:
    """Return a duration divided by the scale, at least 1 ms. Zero and negative durations are unchanged."""
    if not isinstance(duration, timedelta):
        raise InvalidInput(f"a duration must be {describe_mismatch((timedelta,), duration)}")
    scale = time_scale()
    if scale == 1 or duration <= timedelta(0):
        return duration
    return max(_SHORTEST, duration / scale)


@contextmanager
def scaling(scale: float) -> Iterator[None]:
    """Set the scale of this process in a block; 60 turns a minute into a second."""
    global _scale  # noqa: PLW0603 - handlers run in other threads and tasks than the test
    before, _scale = _scale, _checked(scale, "the time scale")
    try:
        yield
    finally:
        _scale = before


def refuse_scaled_time(where: str) -> None:
    """Raise ConfigurationError if the scale is not 1. ``where`` names the process for the message."""
    if (scale := time_scale()) != 1:
        raise ConfigurationError(
            f"{TIME_SCALE_SETTING} divides all durations by {scale:g}, which is for tests only: unset it for {where}"
        )


def _read(text: str) -> float:
    if not text:
        return 1.0
    try:
        return _checked(float(text), TIME_SCALE_SETTING)
    except ValueError as error:
        raise ConfigurationError(f"{TIME_SCALE_SETTING} must be a number above 0, got {text!r}") from error


def _checked(scale: float, setting: str) -> float:
    if not 0 < scale < math.inf:
        raise ConfigurationError(f"{setting} must be a number above 0, got {scale:g}")
    return scale

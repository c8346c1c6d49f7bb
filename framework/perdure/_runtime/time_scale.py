"""Scaled time: the one seam through which a test makes hours pass in milliseconds, without sleeping.

Whatever perdure makes last goes through `scaled` once, where a duration meets the engine or a clock: a durable sleep,
the delay of a send, a deadline (``now + scaled(timeout)``). With the scale 3600, an hour lasts a second. Replays need
no care: the engine keeps when a timer is due, not how long it was meant to be.

The scale is 1 unless PERDURE_TIME_SCALE or `scaling` say otherwise. In production (`SecurityConfig`) nothing starts
with another one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from perdure._runtime.checks import wanted
from perdure.errors import ConfigurationError, InvalidInput

__all__ = ["TIME_SCALE_SETTING", "refuse_scaled_time", "scaled", "scaling", "time_scale"]

TIME_SCALE_SETTING: Final = "PERDURE_TIME_SCALE"
"""The environment variable for processes that a test starts; read when a process first asks."""

_SHORTEST: Final = timedelta(milliseconds=1)  # the engine counts in milliseconds, and later must stay later

_scale: float | None = None


def time_scale() -> float:
    """Return how many times faster than real durations perdure's are in this process; usually 1.

    Raises:
        ConfigurationError: PERDURE_TIME_SCALE is no number above 0.
    """
    global _scale  # noqa: PLW0603 - read once, since a scale that changes by itself would help nobody
    if _scale is None:
        _scale = _read(os.environ.get(TIME_SCALE_SETTING, ""))
    return _scale


def scaled(duration: timedelta) -> timedelta:
    """Return how long a duration lasts in this process.

    Args:
        duration: As configured. Nothing or less stays as it is.

    Returns:
        The duration itself, or what is left of it under the scale; at least 1 ms.

    Raises:
        InvalidInput: It is no timedelta; a number says nothing of its unit.
    """
    if not isinstance(duration, timedelta):
        raise InvalidInput(f"a duration must be {wanted((timedelta,), duration)}")
    scale = time_scale()
    if scale == 1 or duration <= timedelta(0):
        return duration
    return max(_SHORTEST, duration / scale)


@contextmanager
def scaling(scale: float) -> Iterator[None]:
    """Make durations of this process shorter while the context lasts; for tests.

    Args:
        scale: 60 makes a minute last a second.

    Raises:
        ConfigurationError: The scale is no number above 0.
    """
    global _scale  # noqa: PLW0603 - handlers run in other threads and tasks than the test
    before, _scale = _scale, _checked(scale, "the time scale")
    try:
        yield
    finally:
        _scale = before


def refuse_scaled_time(where: str) -> None:
    """Refuse to go on under a scale other than 1, since timeouts would come too early for real people.

    Args:
        where: What must not run so, for the message, for example ``"a service in production"``.

    Raises:
        ConfigurationError: The scale isn't 1.
    """
    if (scale := time_scale()) != 1:
        raise ConfigurationError(
            f"{TIME_SCALE_SETTING} makes all durations {scale:g} times shorter, which is for tests only: unset it for "
            f"{where}"
        )


def _read(text: str) -> float:
    if not text:
        return 1.0
    try:
        return _checked(float(text), TIME_SCALE_SETTING)
    except ValueError as error:
        raise ConfigurationError(f"{TIME_SCALE_SETTING} must be a number above 0, got {text!r}") from error


def _checked(scale: float, what: str) -> float:
    if not 0 < scale < math.inf:
        raise ConfigurationError(f"{what} must be a number above 0, got {scale:g}")
    return scale

"""Repetition of requests that a just-started engine refuses for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from perdure.retry import RetryPolicy

REGISTRATION_TIMEOUT: Final = timedelta(seconds=5)
"""Default limit for handlers that are not registered, short enough for a mistyped name."""

START_TIMEOUT: Final = timedelta(seconds=30)
"""Default limit for partitions without a leader: like that of the engine's start, since nothing else refuses so."""

_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=50), max_interval=timedelta(milliseconds=500), max_attempts=None
)


def start_delays(limit: timedelta) -> Iterator[timedelta]:
    """Yield the delays before the repetitions of a request; their sum is at most the limit."""
    failures, waited = 1, timedelta(0)
    while (waited := waited + (delay := _RETRY.delay_after(failures))) <= limit:
        yield delay
        failures += 1

"""Retry policies of dispatchers and rollbacks.

When a handler sends to an unknown handler, the engine retries the sender forever. Sends to configurable handlers
therefore go through a dispatcher, a handler that the engine kills after a few attempts, so that its caller sees a
failure.

A dispatcher may also be killed because its process is down, and may have sent before. Unless the failure names an
unknown handler, its outcome is unknown; repeat the call with the same idempotency key.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from perdure.retry import RetryPolicy

SHORT_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), factor=5.0, max_interval=timedelta(seconds=10), max_attempts=4
).for_invocations("kill")
"""Four attempts in about three seconds, for callers that wait and repeat the call."""

LONG_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), max_interval=timedelta(seconds=30), max_attempts=30
).for_invocations("kill")
"""Thirty attempts in about ten minutes, for sends, so that a restart loses nothing."""

DAY_LONG_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), max_interval=timedelta(seconds=10), max_attempts=10_000
).for_invocations("pause")
"""Ten thousand attempts in about 28 hours, for objects that must continue after an outage of a day."""

"""Retry policies of handlers, and the errors of dispatchers.

All policies have a short longest interval, because after an outage each call of a chain waits for its next attempt.

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

LONGEST_INTERVAL: Final = timedelta(seconds=5)
"""Longest interval of all policies, and so the longest delay of a call after an outage.

At this interval, 500 failing invocations make 100 attempts a second, which take a third of a core."""

HANDLER_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=250), factor=1.5, max_interval=LONGEST_INTERVAL, max_attempts=720
).for_invocations("pause")
"""720 attempts in about an hour: the policy of handlers without a policy of their own or of their service."""

SHORT_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), factor=5.0, max_interval=LONGEST_INTERVAL, max_attempts=4
).for_invocations("kill")
"""Four attempts in about three seconds, for callers that wait and repeat the call."""

LONG_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), max_interval=LONGEST_INTERVAL, max_attempts=125
).for_invocations("kill")
"""125 attempts in about ten minutes, for sends, so that a restart loses nothing."""

BACKGROUND_CALL_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), max_interval=LONGEST_INTERVAL, max_attempts=30
).for_invocations("kill")
"""Thirty attempts in about two minutes, for handlers that a poller calls. A paused invocation would block all later
ones; after a kill, the next scan calls the handler again."""

DAY_LONG_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), max_interval=LONGEST_INTERVAL, max_attempts=20_000
).for_invocations("pause")
"""20,000 attempts in about 28 hours, for objects that must continue after an outage of a day."""

"""How a dispatcher gives up.

The engine answers a send to a handler that it does not know with a retry of the *sender*, without end. So what sends
to a handler of somebody else's choice goes through a dispatcher, a handler that is always there and has this policy:
after a few attempts it is killed, and whoever called it sees that as a failure.

It gives up as soon when its own process is down for a few seconds, and may have sent before. So a failure that doesn't
say that the handler is unknown leaves that in doubt, and is asked again under the same idempotency key.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from perdure.retry import RetryPolicy

SHORT_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), factor=5.0, max_interval=timedelta(seconds=10), max_attempts=4
).for_invocations("kill")
"""Four attempts, over about three seconds. For what somebody waits for, and asks again."""

LONG_RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), max_interval=timedelta(seconds=30), max_attempts=30
).for_invocations("kill")
"""Thirty attempts, over about ten minutes. For what nobody waits for, so that a restart loses nothing."""


def is_unknown(message: str) -> bool:
    """Tell if the engine does not know the handler, so that nothing was sent.

    Args:
        message: Why a dispatcher was given up.
    """
    return "was not found" in message

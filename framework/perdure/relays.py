"""How a relay gives up.

The engine answers a send to a handler that it does not know with a retry of the *sender*, without end. So what sends
to a handler of somebody else's choice goes through a relay, a handler that is always there and has this policy: after
a few attempts it is killed, and whoever called it sees that as a failure.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from restate import InvocationRetryPolicy

GIVE_UP_SOON: Final = InvocationRetryPolicy(
    initial_interval=timedelta(milliseconds=100),
    exponentiation_factor=5.0,
    max_interval=timedelta(seconds=10),
    max_attempts=4,
    on_max_attempts="kill",
)
"""Four attempts, over about three seconds."""

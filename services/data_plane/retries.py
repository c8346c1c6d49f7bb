"""How long the data plane keeps trying."""

from __future__ import annotations

from datetime import timedelta

from perdure import RunConfig

# A business refusal is final at once. What is left to retry is the database (locked, restarted, failed over), which
# comes back. Retrying is safe, for the barrier lets only one attempt act. After five minutes the saga compensates.
WRITES = RunConfig(
    max_retries=None,
    initial_delay=timedelta(milliseconds=50),
    max_delay=timedelta(seconds=5),
    max_duration=timedelta(minutes=5),
)

# What leaves the platform waits for another one's outage: a mail server's, of a day.
DELIVERIES = RunConfig(
    max_retries=None,
    initial_delay=timedelta(milliseconds=100),
    max_delay=timedelta(minutes=1),
    max_duration=timedelta(days=1),
)

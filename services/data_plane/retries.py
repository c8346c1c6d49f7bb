"""Retry policies of the data plane."""

from __future__ import annotations

from datetime import timedelta

from perdure import RunConfig

# Business refusals are terminal. The remaining failures are those of the database (locked, restarted, failed over), and
# retries are safe because of the idempotency table. After five minutes, the default, the saga rolls back.
WRITES = RunConfig(initial_delay=timedelta(milliseconds=50), max_delay=timedelta(seconds=5))

# Deliveries ride out an outage of the mail server of one day.
DELIVERIES = RunConfig(max_delay=timedelta(minutes=1), max_duration=timedelta(days=1))

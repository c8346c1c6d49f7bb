"""Gauges of open sagas, dead letters and stuck invocations, which no metric of the engine counts."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import unquote

from perdure._runtime.places import ValueCodec
from perdure.alerts.conditions import HANGING_LIMIT, STUCK_RETRIES, failing_sql, hanging_sql
from perdure.engine.admin import AdminClient
from perdure.observability.gauge_collector import GaugeCollector, Sample, age_in_seconds, parse_time
from perdure.observability.metrics import (
    DEAD_LETTERS,
    OLDEST_DEAD_LETTER,
    OLDEST_SAGA,
    OLDEST_STUCK,
    OPEN_SAGAS,
    STUCK,
)
from perdure.saga.schema import DEAD_LETTERS_SQL, SAGAS_SQL
from perdure.saga.status import SagaPhase

_MAX_PAUSE: Final = timedelta(minutes=1)

# Sagas that need attention are counted by their dead letters.
_OPEN_SQL: Final = f"""{SAGAS_SQL}
    select service, phase, count(*) as number, min(started_at) as oldest from sagas
    where phase in ('running', 'paused', 'compensating', '{SagaPhase.ORPHANED}') group by service, phase"""


def _stuck_sql(hanging_limit: timedelta) -> str:
    failing = failing_sql(STUCK_RETRIES)
    return f"""
    select service, status, count(*) as number, min(created_at) as oldest from (
      select target_service_name as service, created_at,
        case when status = 'paused' then 'paused' when {failing} then 'backing_off' else 'hanging' end as status
      from sys_invocation where status = 'paused' or {failing} or {hanging_sql(hanging_limit)})
    group by service, status"""


def saga_gauges() -> GaugeCollector:
    """Return a collector without samples."""
    gauges = (OPEN_SAGAS, OLDEST_SAGA, DEAD_LETTERS, OLDEST_DEAD_LETTER, STUCK, OLDEST_STUCK)
    return GaugeCollector("sagas", *gauges)


class SagaSampler:
    """Samples the sagas, and repeats the last samples for fifty times the duration of their queries.

    The queries read the history of all sagas, and must not take more than 2 % of a core.

    Args:
        hanging_limit: See `sample_sagas`.
    """

    def __init__(self, hanging_limit: timedelta = HANGING_LIMIT) -> None:
        self._hanging_limit = hanging_limit
        self._samples: list[Sample] = []
        self._next = 0.0

    async def __call__(self, admin: AdminClient, codec: ValueCodec | None) -> list[Sample]:  # noqa: ARG002 - names only
        """Return samples; see `sample_sagas`."""
        begin = time.monotonic()
        if begin >= self._next:
            self._samples = await sample_sagas(admin, self._hanging_limit)
            end = time.monotonic()
            self._next = end + min(_MAX_PAUSE.total_seconds(), 50 * (end - begin))
        return self._samples


async def sample_sagas(admin: AdminClient, hanging_limit: timedelta = HANGING_LIMIT) -> list[Sample]:
    """Return samples from the engine's tables.

    Args:
        admin: The engine.
        hanging_limit: How long an attempt may run without progress.

    Raises:
        EngineError: The engine does not answer, or refuses a query.
    """
    now = datetime.now(UTC)
    samples: list[Sample] = []
    for row in await admin.query(_OPEN_SQL):
        labels = {"service": row["service"], "phase": row["phase"]}
        samples.append((OPEN_SAGAS, row["number"], labels))
        samples.append((OLDEST_SAGA, age_in_seconds(parse_time(row, "oldest"), now), labels))
    for row in await admin.query(_stuck_sql(hanging_limit)):
        labels = {"service": row["service"], "status": row["status"]}
        samples.append((STUCK, row["number"], labels))
        samples.append((OLDEST_STUCK, age_in_seconds(parse_time(row, "oldest"), now), labels))
    return [*samples, *await _sample_dead_letters(admin, now)]


async def _sample_dead_letters(admin: AdminClient, now: datetime) -> list[Sample]:
    samples: list[Sample] = []
    for row in await admin.query(DEAD_LETTERS_SQL):
        labels = {"service": unquote(row["service"])}
        age = age_in_seconds(parse_time(row, "oldest"), now)
        samples.append((DEAD_LETTERS, row["number"], labels))
        samples.append((OLDEST_DEAD_LETTER, age, labels))
        attention = {**labels, "phase": SagaPhase.NEEDS_ATTENTION.value}
        samples.append((OPEN_SAGAS, row["sagas"], attention))
        samples.append((OLDEST_SAGA, age, attention))
    return samples

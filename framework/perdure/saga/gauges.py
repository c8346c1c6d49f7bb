"""Gauges of open sagas, dead letters, held steps and stuck invocations, which no metric of the engine counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import unquote

from perdure._runtime.places import ValueCodec
from perdure.alerts.conditions import HANGING_LIMIT, STUCK_RETRIES, Condition, stored_conditions_sql
from perdure.alerts.service import StoredConditions, attempt_conditions
from perdure.engine.admin import AdminClient
from perdure.engine.polling import Pace
from perdure.observability.gauge_collector import GaugeCollector, Sample, age_in_seconds, parse_time
from perdure.observability.metrics import (
    DEAD_LETTERS,
    HELD_STEPS,
    HELD_STEPS_DUE,
    OLDEST_DEAD_LETTER,
    OLDEST_SAGA,
    OLDEST_STUCK,
    OPEN_SAGAS,
    STUCK,
)
from perdure.saga.held_step_monitoring import sample_held_steps
from perdure.saga.queries import open_sagas_sql
from perdure.saga.schema import DEAD_LETTERS_SQL
from perdure.saga.status import SagaPhase

_OPEN_SHARE: Final = 0.003
"""Share of a core for the query that reads the history of all sagas."""

# Sagas that need attention are counted by their dead letters.
_OPEN_SQL: Final = f"""
    select service, phase, count(*) as number, min(started_at) as oldest from sagas
    where phase in ('running', 'paused', 'compensating', '{SagaPhase.ORPHANED}') group by service, phase"""


def saga_gauges() -> GaugeCollector:
    """Return a collector without samples."""
    gauges = (OPEN_SAGAS, OLDEST_SAGA, DEAD_LETTERS, OLDEST_DEAD_LETTER, STUCK, OLDEST_STUCK)
    return GaugeCollector("sagas", *gauges, HELD_STEPS, HELD_STEPS_DUE)


class SagaSampler:
    """Samples the sagas. The number of open ones is of the last query that its share of a core permitted.

    Args:
        stored: Reads paused invocations.
        hanging_limit: See `sample_sagas`.
    """

    def __init__(self, stored: StoredConditions, hanging_limit: timedelta = HANGING_LIMIT) -> None:
        self._stored = stored
        self._hanging_limit = hanging_limit
        self._pace = Pace(_OPEN_SHARE)
        self._open: list[dict[str, Any]] = []

    async def __call__(self, admin: AdminClient, codec: ValueCodec | None) -> list[Sample]:  # noqa: ARG002 - names only
        """Return samples; see `sample_sagas`."""
        if self._pace.is_due:
            with self._pace.measured():
                self._open = await _count_open(admin)
        stored = await self._stored.read(admin)
        return await _sample(admin, self._open, stored, self._hanging_limit)


async def sample_sagas(admin: AdminClient, hanging_limit: timedelta = HANGING_LIMIT) -> list[Sample]:
    """Return samples from the engine's tables.

    Args:
        admin: The engine.
        hanging_limit: How long an attempt may run without progress.

    Raises:
        EngineError: The engine does not answer, or refuses a query.
    """
    stored = await admin.query(stored_conditions_sql(timedelta(0)))
    return await _sample(admin, await _count_open(admin), stored, hanging_limit)


async def _count_open(admin: AdminClient) -> list[dict[str, Any]]:
    return await admin.query(await open_sagas_sql(admin.query) + _OPEN_SQL)


async def _sample(
    admin: AdminClient,
    open_sagas: Iterable[Mapping[str, Any]],
    stored: Iterable[Mapping[str, Any]],
    hanging_limit: timedelta,
) -> list[Sample]:
    now = datetime.now(UTC)
    samples: list[Sample] = []
    for row in open_sagas:
        labels = {"service": row["service"], "phase": row["phase"]}
        samples.append((OPEN_SAGAS, row["number"], labels))
        samples.append((OLDEST_SAGA, age_in_seconds(parse_time(row, "oldest"), now), labels))
    paused = (row for row in stored if row["condition"] == Condition.PAUSED)
    stuck = {
        (row["service"], row["condition"]): row
        for row in (*paused, *await attempt_conditions(admin, STUCK_RETRIES, hanging_limit))
    }
    for (service, condition), row in stuck.items():
        labels = {"service": service, "status": condition}
        samples.append((STUCK, row["number"], labels))
        samples.append((OLDEST_STUCK, age_in_seconds(parse_time(row, "oldest"), now), labels))
    return [*samples, *await _sample_dead_letters(admin, now), *await sample_held_steps(admin, now)]


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

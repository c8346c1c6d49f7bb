"""Gauges of open sagas, dead letters, held steps and stuck invocations, which no metric of the engine counts."""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError

from perdure._runtime.places import ValueCodec
from perdure.alerts.conditions import HANGING_LIMIT, STUCK_RETRIES, failing_sql, hanging_sql
from perdure.engine.admin import AdminClient
from perdure.errors import UnreadableValue
from perdure.observability.gauge_collector import GaugeCollector, Sample, age_in_seconds, decode_state_value, parse_time
from perdure.observability.logging import get_logger
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
from perdure.saga.messages import DeadLetter
from perdure.saga.schema import DEAD_LETTERS_SQL, SAGAS_SQL
from perdure.saga.status import SagaPhase

log = get_logger("perdure.saga.gauges")

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
    return GaugeCollector("sagas", *gauges, HELD_STEPS, HELD_STEPS_DUE)


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

    async def __call__(self, admin: AdminClient, codec: ValueCodec | None) -> list[Sample]:
        """Return samples; see `sample_sagas`."""
        begin = time.monotonic()
        if begin >= self._next:
            self._samples = await sample_sagas(admin, codec, self._hanging_limit)
            end = time.monotonic()
            self._next = end + min(_MAX_PAUSE.total_seconds(), 50 * (end - begin))
        return self._samples


async def sample_sagas(
    admin: AdminClient, codec: ValueCodec | None, hanging_limit: timedelta = HANGING_LIMIT
) -> list[Sample]:
    """Return samples from the engine's tables.

    Args:
        admin: The engine.
        codec: Encryption of the services' journal; None if it is not encrypted.
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
    return [*samples, *await _sample_dead_letters(admin, codec, now), *await sample_held_steps(admin, now)]


async def _sample_dead_letters(admin: AdminClient, codec: ValueCodec | None, now: datetime) -> list[Sample]:
    letters: defaultdict[str, list[DeadLetter]] = defaultdict(list)
    unreadable = 0
    for row in await admin.query(DEAD_LETTERS_SQL):
        try:
            letter = DeadLetter.model_validate_json(decode_state_value(row, codec))
        except (ValidationError, UnreadableValue):  # another version or another key
            unreadable += 1
            continue
        letters[letter.service].append(letter)
    samples: list[Sample] = []
    if unreadable:
        log.warning("saga.gauges.unreadable", number=unreadable)
        samples.append((DEAD_LETTERS, unreadable, {"service": "unknown"}))
    for service, found in letters.items():
        labels = {"service": service}
        oldest = min(each.since for each in found)
        samples.append((DEAD_LETTERS, len(found), labels))
        samples.append((OLDEST_DEAD_LETTER, age_in_seconds(oldest, now), labels))
        attention = {**labels, "phase": "needs_attention"}
        samples.append((OPEN_SAGAS, len({each.saga_id for each in found}), attention))
        samples.append((OLDEST_SAGA, age_in_seconds(oldest, now), attention))
    return samples

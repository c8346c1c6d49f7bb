"""How many sagas are open, and where; how many dead letters wait; what doesn't get on: out of the engine's tables.

No metric of the engine's own counts any of that.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from perdure._runtime.places import ValueCodec
from perdure.alerts.conditions import RETRIES_OF_STUCK, failing_sql
from perdure.engine.admin import AdminClient
from perdure.errors import UnreadableValue
from perdure.observability.gauge_collector import GaugeCollector, Sample, age_in_seconds, decode_state_value, parse_time
from perdure.observability.logging import get_logger
from perdure.observability.metrics import (
    DEAD_LETTERS,
    OLDEST_DEAD_LETTER,
    OLDEST_SAGA,
    OLDEST_STUCK,
    OPEN_SAGAS,
    STUCK,
)
from perdure.saga.messages import DeadLetter
from perdure.saga.queries import SAGAS

log = get_logger("perdure.saga.gauges")

# What waits for somebody is counted by its dead letters.
_OPEN: Final = f"""{SAGAS}
    select service, phase, count(*) as number, min(started_at) as oldest from sagas
    where phase in ('running', 'paused', 'compensating', 'lost') group by service, phase"""
_STUCK: Final = f"""
    select service, status, count(*) as number, min(created_at) as oldest from (
      select target_service_name as service, created_at,
        case status when 'paused' then 'paused' else 'backing_off' end as status from sys_invocation
      where status = 'paused' or {failing_sql(RETRIES_OF_STUCK)})
    group by service, status"""
_LETTERS: Final = (
    "select service_name, service_key, key, encode(value, 'hex') as value from state "
    "where service_name = 'DeadLetterIndex'"
)


def saga_gauges() -> GaugeCollector:
    """Return an empty census of sagas."""
    gauges = (OPEN_SAGAS, OLDEST_SAGA, DEAD_LETTERS, OLDEST_DEAD_LETTER, STUCK, OLDEST_STUCK)
    return GaugeCollector("sagas", *gauges)


async def count_sagas(admin: AdminClient, codec: ValueCodec | None) -> list[Sample]:
    """Ask the engine.

    Args:
        admin: The engine.
        codec: What the services' journal is encrypted with; None when it is in clear.

    Raises:
        EngineError: The engine does not answer, or refuses a query.
    """
    now = datetime.now(UTC)
    samples: list[Sample] = []
    for row in await admin.query(_OPEN):
        labels = {"service": row["service"], "phase": row["phase"]}
        samples.append((OPEN_SAGAS, row["number"], labels))
        samples.append((OLDEST_SAGA, age_in_seconds(parse_time(row, "oldest"), now), labels))
    for row in await admin.query(_STUCK):
        labels = {"service": row["service"], "status": row["status"]}
        samples.append((STUCK, row["number"], labels))
        samples.append((OLDEST_STUCK, age_in_seconds(parse_time(row, "oldest"), now), labels))
    return [*samples, *await _dead_letters(admin, codec, now)]


async def _dead_letters(admin: AdminClient, codec: ValueCodec | None, now: datetime) -> list[Sample]:
    letters: defaultdict[str, list[DeadLetter]] = defaultdict(list)
    unreadable = 0
    for row in await admin.query(_LETTERS):
        try:
            letter = DeadLetter.model_validate_json(decode_state_value(row, codec))
        except (ValidationError, UnreadableValue):  # of another version, or sealed otherwise: counted all the same
            unreadable += 1
            continue
        letters[letter.service].append(letter)
    samples: list[Sample] = []
    if unreadable:
        log.warning("saga.census.unreadable", number=unreadable)
        samples.append((DEAD_LETTERS, unreadable, {"service": "unknown"}))
    for service, found in letters.items():
        labels = {"service": service}
        oldest = min((each.since for each in found), default=None)
        samples.append((DEAD_LETTERS, len(found), labels))
        samples.append((OLDEST_DEAD_LETTER, age_in_seconds(oldest, now), labels))
        attention = {**labels, "phase": "needs_attention"}
        samples.append((OPEN_SAGAS, len({each.saga_id for each in found}), attention))
        samples.append((OLDEST_SAGA, age_in_seconds(oldest, now), attention))
    return samples

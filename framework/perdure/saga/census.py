"""How many sagas are open, and where; how many dead letters wait; what doesn't get on: out of the engine's tables.

No metric of the engine's own counts any of that.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError
from restate import JournalValueCodec

from perdure.admin import AdminClient
from perdure.observability.census import Census, Sample, age_of, decoded, started_of
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

log = get_logger("perdure.saga.census")

# The joins are by equal keys, so that they stay cheap. A saga's id is its workflow's key with or without a prefix.
_SAGAS: Final = """
    select service, phase, count(*) as number, min(started_at) as oldest from (
      select i.target_service_name as service, i.created_at as started_at, case
        when r.service_key is not null or q.service_key is not null then 'compensating'
        when i.status = 'paused' then 'paused'
        when i.status != 'completed' and f.service_key is not null then 'compensating'
        when i.status != 'completed' then 'running'
        when c.service_key is null and s.service_key is not null and h.service_key is null and g.service_key is null
          then 'lost'
        else 'closed' end as phase
      from sys_invocation_status i
      left join (select service_key from state where service_name = 'Rollbacks' and key = 'open') r
        on r.service_key = i.target_service_key
      left join (select service_key from state where service_name = 'Rollbacks' and key = 'open') q
        on q.service_key = i.target_service_name || ':' || i.target_service_key
      left join (select service_key from state where service_name = 'Rollbacks' and key = 'head') h
        on h.service_key = i.target_service_key
      left join (select service_key from state where service_name = 'Rollbacks' and key = 'head') g
        on g.service_key = i.target_service_name || ':' || i.target_service_key
      left join (select service_name, service_key from state where key = 'saga/failed') f
        on f.service_name = i.target_service_name and f.service_key = i.target_service_key
      left join (select service_name, service_key from state where key = 'saga/closed') c
        on c.service_name = i.target_service_name and c.service_key = i.target_service_key
      left join (select service_name, service_key from state where key = 'saga/000001') s
        on s.service_name = i.target_service_name and s.service_key = i.target_service_key
      where i.target_service_ty = 'workflow' and i.target_handler_name = 'run')
    where phase != 'closed' group by service, phase"""
_STUCK: Final = """
    select target_service_name as service, status, count(*) as number, min(created_at) as oldest from sys_invocation
    where status = 'paused' or (status = 'backing-off' and retry_count >= 2) group by target_service_name, status"""
_LETTERS: Final = "select encode(value, 'hex') as value from state where service_name = 'DeadLetterIndex'"


def saga_census() -> Census:
    """Return an empty census of sagas."""
    gauges = (OPEN_SAGAS, OLDEST_SAGA, DEAD_LETTERS, OLDEST_DEAD_LETTER, STUCK, OLDEST_STUCK)
    return Census("sagas", *gauges)


async def count_sagas(admin: AdminClient, codec: JournalValueCodec | None) -> list[Sample]:
    """Ask the engine.

    Args:
        admin: The engine.
        codec: What the services' journal is encrypted with; None when it is in clear.

    Raises:
        EngineError: The engine does not answer, or refuses a query.
    """
    now = datetime.now(UTC)
    samples: list[Sample] = []
    for row in await admin.query(_SAGAS):
        labels = {"service": row["service"], "phase": row["phase"]}
        samples.append((OPEN_SAGAS, row["number"], labels))
        samples.append((OLDEST_SAGA, age_of(started_of(row, "oldest"), now), labels))
    for row in await admin.query(_STUCK):
        labels = {"service": row["service"], "status": row["status"].replace("-", "_")}
        samples.append((STUCK, row["number"], labels))
        samples.append((OLDEST_STUCK, age_of(started_of(row, "oldest"), now), labels))
    return [*samples, *await _dead_letters(admin, codec, now)]


async def _dead_letters(admin: AdminClient, codec: JournalValueCodec | None, now: datetime) -> list[Sample]:
    letters: defaultdict[str, list[DeadLetter]] = defaultdict(list)
    for row in await admin.query(_LETTERS):
        try:
            letter = DeadLetter.model_validate_json(await decoded(row["value"], codec))
        except ValidationError as error:  # of a version that this one can't read, and still not to be left out
            log.warning("saga.census.unreadable", errors=error.error_count())
            letters["unknown"] = letters["unknown"]
            continue
        letters[letter.service].append(letter)
    samples: list[Sample] = []
    for service, found in letters.items():
        labels = {"service": service}
        oldest = min((each.since for each in found), default=None)
        samples.append((DEAD_LETTERS, len(found), labels))
        samples.append((OLDEST_DEAD_LETTER, age_of(oldest, now), labels))
        attention = {**labels, "phase": "needs_attention"}
        samples.append((OPEN_SAGAS, len({each.saga_id for each in found}), attention))
        samples.append((OLDEST_SAGA, age_of(oldest, now), attention))
    return samples

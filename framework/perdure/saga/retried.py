"""Invocations of a saga that fail and are retried by the engine, such as a step whose dependency is down."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from pydantic import BaseModel, JsonValue

from perdure._runtime.admin_url import ADMIN_URL_SETTING, admin_url
from perdure._runtime.outcomes import describe
from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.attempts import WAITING_SQL, last_failures
from perdure.observability.logging import get_logger
from perdure.saga.schema import of_key_sql

log = get_logger(__name__)

MAX_ERROR_LENGTH: Final = 300

ADMIN_TIMEOUT: Final = 2.0
"""Seconds that a status waits for the admin API; it must be available without it."""


class RetriedInvocation(BaseModel):
    """An invocation of a saga that fails and is retried by the engine.

    Args:
        id: Its ID.
        target: Its handler.
        attempts: Number of attempts.
        error: Error of the last attempt.
        next_attempt_at: When the next attempt is due; None while one runs.
    """

    id: str
    target: str
    attempts: int
    error: str
    next_attempt_at: datetime | None = None


async def retried_invocations(
    admin: AdminClient, service: str, key: str, compensations: Iterable[str | None] = ()
) -> list[RetriedInvocation]:
    """Return the failing invocations among an orchestration, its running compensations, and their calls.

    Args:
        admin: The engine's admin API.
        service: The orchestrator's service.
        key: Its key.
        compensations: Invocation IDs of the running compensations.
    """
    # The engine holds the failing invocations in memory. The tables of all invocations are read only if there are some.
    failing = "select id from sys_invocation_state where last_failure is not null"
    if not await admin.query(f"({failing} limit 1) union all (select id from ({WAITING_SQL}) limit 1)"):
        return []
    own = (
        f"select id from sys_invocation_status where target_service_name = {sql_text(service)} "
        f"and {of_key_sql(key, column='target_service_key')} and target_handler_name = 'run'"
    )
    ids = "".join(f" union all select {sql_text(each)} as id" for each in compensations if each is not None)
    rows = await admin.query(
        f"with own as ({own}{ids}), waiting as ({WAITING_SQL}) select i.id as id, i.target as target, "
        "coalesce(i.retry_count, w.num_errors) as retry_count, i.last_failure as last_failure, "
        "coalesce(i.next_retry_at, w.run_at) as next_retry_at from sys_invocation i left join waiting w on w.id = i.id "
        "where i.status not in ('completed', 'paused') and (i.last_failure is not null or w.id is not null) "
        "and (i.id in (select id from own) or i.invoked_by_id in (select id from own)) order by i.id"
    )
    waiting = await last_failures(admin, [row["id"] for row in rows if not row.get("last_failure")])
    return [
        RetriedInvocation(
            id=row["id"],
            target=row["target"],
            attempts=row["retry_count"],
            error=_shortened(row.get("last_failure") or waiting.get(row["id"], ("", ""))[0]),
            next_attempt_at=row.get("next_retry_at"),
        )
        for row in rows
    ]


def _shortened(failure: str) -> str:
    return " ".join(failure.partition("\nTraceback")[0].split())[:MAX_ERROR_LENGTH]


async def retries_for_status(service: str, key: str, compensations: Iterable[str | None] = ()) -> JsonValue:
    """Return `retried_invocations` for a public status, without IDs.

    A text that begins with "unknown" says why they are not known; a status must not fail with the admin API.
    """
    url = admin_url()
    if url is None:
        return f"unknown: {ADMIN_URL_SETTING} is not set"
    try:
        async with asyncio.timeout(ADMIN_TIMEOUT), AdminClient(url) as admin:
            found = await retried_invocations(admin, service, key, compensations)
    except Exception as error:  # noqa: BLE001 - another server may answer at this address
        log.warning("saga.status.retries_unknown", reason=describe(error))
        return "unknown: the engine's admin API does not answer"
    return [each.model_dump(mode="json", exclude={"id"}) for each in found]

"""Queries for invocations, and actions on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from perdure._runtime.engine_messages import says_malformed_invocation_id
from perdure.alerts.conditions import STUCK_RETRIES, failing_sql
from perdure.engine.admin import failure_message, sql_text
from services.console.auth.sessions import Session
from services.console.dependencies import Components
from services.console.engine import UNKNOWN_OUTCOME, EngineClient
from services.console.invocations.schemas import ActionName, Invocation
from services.console.problems import ConsoleError, not_found

MAX_ITEMS: Final = 200

_ID: Final = re.compile("inv_[a-zA-Z0-9]{16,64}")

_COLUMNS: Final = "id, target, status, created_at, modified_at, retry_count, next_retry_at, last_failure"
_STUCK: Final = f"""
select {_COLUMNS} from sys_invocation where status = 'paused' or {failing_sql(STUCK_RETRIES)}
order by created_at limit {MAX_ITEMS}"""
_NO_PAUSE_REASON: Final = "paused by an operator, or after the last attempt"


async def list_stuck(engine: EngineClient) -> list[Invocation]:
    """Return the invocations that are paused or fail repeatedly, oldest first."""
    rows = await engine.query(_STUCK)
    reasons = await pause_reasons(engine, [row["id"] for row in rows if row["status"] == "paused"])
    return [_invocation(row, reasons.get(row["id"])) for row in rows]


async def pause_reasons(engine: EngineClient, ids: Sequence[str]) -> dict[str, str]:
    """Return why invocations are paused, by ID."""
    reasons = await engine.pause_reasons(ids)
    return {invocation: reasons.get(invocation) or _NO_PAUSE_REASON for invocation in ids}


async def list_open(engine: EngineClient, search: str = "") -> list[Invocation]:
    """Return at most 200 invocations that have not ended, oldest first, scheduled ones last.

    `search` is a part of the target or ID.
    """
    quoted = sql_text(search)
    matches = f"and (strpos(target, {quoted}) > 0 or strpos(id, {quoted}) > 0)" if search else ""
    rows = await engine.query(
        f"select {_COLUMNS} from sys_invocation where status != 'completed' {matches} "
        f"order by case status when 'scheduled' then 1 else 0 end, created_at limit {MAX_ITEMS}"
    )
    return [_invocation(row, None) for row in rows]


async def act(components: Components, session: Session, invocation_id: str, action: ActionName, reason: str) -> None:
    """Resume, cancel or kill an invocation. The console records the actor, which the engine does not store.

    Raises:
        ConsoleError: The invocation does not exist, its state does not permit the action, or the engine did not
            respond; 504 if the outcome is unknown.
    """
    engine, users, actor = components.engine, components.users, session.user.name
    # The engine answers an ID of another form with a query error.
    target = _ID.fullmatch(invocation_id) and await _target(engine, invocation_id)
    if not target:
        raise not_found(f"no invocation '{invocation_id[:200]}'; it may have ended")
    details = f"{target}: {reason}"
    try:
        await engine.act(invocation_id, action)
    except ConsoleError as error:
        if error.problem.code == UNKNOWN_OUTCOME:
            await users.record(actor, action, invocation_id[:300], f"{details} (outcome unknown)")
        raise
    await users.record(actor, action, invocation_id[:300], details)


async def _target(engine: EngineClient, invocation_id: str) -> str | None:
    try:
        rows = await engine.query(f"select target from sys_invocation_status where id = {sql_text(invocation_id)}")
    except ConsoleError as error:
        if says_malformed_invocation_id(error.message):
            return None
        raise
    return str(rows[0]["target"]) if rows else None


def _invocation(row: dict[str, Any], pause_reason: str | None) -> Invocation:
    return Invocation.model_validate({**row, "reason": pause_reason or failure_message(row.get("last_failure"))})

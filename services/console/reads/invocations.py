"""Invocations: those that are stuck, those that run, and what operators do with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel

from perdure.alerts.conditions import STUCK_RETRIES, failing_sql
from perdure.engine.admin import failure_message, sql_text
from services.console.engine import NO_ANSWER_YET, Engine
from services.console.people.persons import Users
from services.console.problems import ConsoleError, not_found

MOST: Final = 200
InvocationSteer = Literal["resume", "cancel", "kill"]

_ID: Final = re.compile("inv_[a-zA-Z0-9]{16,64}")

_COLUMNS: Final = "id, target, status, created_at, modified_at, retry_count, next_retry_at, last_failure"
_STUCK: Final = f"""
select {_COLUMNS} from sys_invocation where status = 'paused' or {failing_sql(STUCK_RETRIES)}
order by created_at limit {MOST}"""
_BY_HAND: Final = "paused by hand, or after its last try"


class Invocation(BaseModel):
    """One invocation.

    Args:
        id: Its id.
        target: What runs: service, key and handler.
        status: What the engine says: paused, backing-off, running, suspended, …
        created_at: Since when.
        modified_at: When it last moved.
        retry_count: How often it was tried.
        next_retry_at: When it's tried again.
        reason: Why it failed last.
    """

    id: str
    target: str
    status: str
    created_at: datetime
    modified_at: datetime | None = None
    retry_count: int | None = None
    next_retry_at: datetime | None = None
    reason: str | None = None


async def stuck(engine: Engine) -> list[Invocation]:
    """Return the invocations that are paused, or fail and are tried again; the oldest first.

    Args:
        engine: The engine.

    Raises:
        ConsoleError: The engine does not answer.
    """
    rows = await engine.query(_STUCK)
    why = await why_paused(engine, [row["id"] for row in rows if row["status"] == "paused"])
    return [_invocation(row, why.get(row["id"])) for row in rows]


async def why_paused(engine: Engine, ids: Sequence[str]) -> dict[str, str]:
    """Return why invocations are paused, by their ids.

    Args:
        engine: The engine.
        ids: Invocations that are paused.

    Raises:
        ConsoleError: The engine does not answer.
    """
    found = await engine.why_paused(ids)
    return {each: found.get(each) or _BY_HAND for each in ids}


async def under_way(engine: Engine, search: str = "") -> list[Invocation]:
    """Return the invocations that have not ended; the oldest first, what is yet to begin last, at most 200.

    Args:
        engine: The engine.
        search: Part of the target or of the id.

    Raises:
        ConsoleError: The engine does not answer.
    """
    wanted = sql_text(search)
    fits = f"and (strpos(target, {wanted}) > 0 or strpos(id, {wanted}) > 0)" if search else ""
    rows = await engine.query(
        f"select {_COLUMNS} from sys_invocation where status != 'completed' {fits} "
        f"order by case status when 'scheduled' then 1 else 0 end, created_at limit {MOST}"
    )
    return [_invocation(row, None) for row in rows]


async def steer(
    engine: Engine, persons: Users, invocation_id: str, what: InvocationSteer, *, actor: str, reason: str
) -> None:
    """Resume an invocation, cancel or kill one. The engine asks not who does it, so the console remembers.

    Args:
        engine: The engine.
        persons: Keeps who did it.
        invocation_id: The invocation.
        what: What to do.
        actor: Who does it.
        reason: Why.

    Raises:
        ConsoleError: There is no such invocation, it is in no state for that, or the engine does not answer; if that
            leaves open whether it was done, with 504.
    """
    # The engine takes an id that can't be one for a broken query.
    known = _ID.fullmatch(invocation_id) and await _target(engine, invocation_id)
    if not known:
        raise not_found(f"there is no invocation '{invocation_id[:200]}' (any more)")
    done = f"{known}: {reason}"
    try:
        await engine.act(invocation_id, what)
    except ConsoleError as error:
        if error.problem.code == NO_ANSWER_YET:  # done all the same, perhaps: nobody else will know who did it
            await persons.record(actor, what, invocation_id[:300], f"{done} (no answer came)")
        raise
    await persons.record(actor, what, invocation_id[:300], done)


async def _target(engine: Engine, invocation_id: str) -> str | None:
    try:
        rows = await engine.query(f"select target from sys_invocation_status where id = {sql_text(invocation_id)}")
    except ConsoleError as error:
        if "non valid invocation id" in error.message:
            return None
        raise
    return str(rows[0]["target"]) if rows else None


def _invocation(row: dict[str, Any], why: str | None) -> Invocation:
    failure = failure_message(row.get("last_failure"))
    return Invocation.model_validate({**row, "reason": why or failure})

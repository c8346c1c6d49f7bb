"""Failed attempts of invocations, as SQL over the engine's tables.

An invocation that waits for its next attempt is in the memory of the invoker, table ``sys_invocation_state``. With
virtual queues, which Restate 1.8 enables by default, it waits in its queue if the delay is long. The tables of
invocations then show neither its failure nor its attempts.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

from perdure.engine.admin import AdminClient, sql_text

WAITING_SQL: Final = (
    "select entry_id as id, num_errors, run_at from sys_vqueues where stage = 'inbox' and status = 'backing-off'"
)
"""Query for invocations that wait in a virtual queue for their next attempt; empty without virtual queues."""


async def last_failures(admin: AdminClient, ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return message and code of the last failure of invocations whose row has none.

    Args:
        admin: The engine.
        ids: The invocations.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    if not ids:
        return {}
    rows = await admin.query(
        "select id, event_json from sys_journal_events where event_type = 'TransientError' "  # noqa: S608 - quoted
        f"and id in ({', '.join(map(sql_text, ids))}) order by appended_at"
    )
    return {row["id"]: _failure(json.loads(row["event_json"])) for row in rows}


def _failure(event: dict[str, Any]) -> tuple[str, str]:
    content = event.get("TransientError", event)
    return content.get("error_message") or "", content.get("restate_doc_error_code") or ""

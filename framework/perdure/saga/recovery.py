"""Recovery of an orphaned saga: its service still has the record, and submits it to `Rollbacks`."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import restate
from pydantic import BaseModel
from restate.serde import BytesSerde

from perdure._runtime.waiting import done_before
from perdure.clients import ServiceClient
from perdure.engine.admin import AdminClient, sql_interval, sql_text
from perdure.errors import PerdureTerminalError, TerminalError
from perdure.saga.dispatch import StartCompensation, start_compensation
from perdure.saga.messages import ExternalRollbackRequest, roll_back_handler
from perdure.saga.schema import CompensationHandler, closed_sql

ANSWER_TIMEOUT = timedelta(seconds=5)
"""How long to wait for a service; one that is down must not delay the sagas of the others."""

_MAX_NAMED = 3


class UnresponsiveService(PerdureTerminalError):
    """A service did not answer in time; it performs the request when it is up again."""


class RemainingCalls(BaseModel):
    """Calls of an orphaned orchestration.

    Args:
        running: Targets of in-flight calls by invocation; they could overtake a compensation. The engine leaves them
            running when it kills an orchestration at the end of its retry policy.
        unsure: The same, but called or only sent: the journal, which tells, is no longer stored.
        ended: Targets of calls that failed a moment ago; a thread of theirs may still commit.
        failed_children: Handlers that roll back children which ended without a result. A child that was killed before
            its first step leaves no record, like one whose retention is over; only the engine can tell them apart.
    """

    running: dict[str, str] = {}
    unsure: dict[str, str] = {}
    ended: dict[str, str] = {}
    failed_children: list[CompensationHandler] = []

    def explain(self) -> str | None:
        """Return why the saga cannot be rolled back yet, or None if it can."""
        for calls, description in (
            (self.running, "its calls still run, and were cancelled"),
            (self.unsure, "its calls or what it sent still run"),
            (self.ended, "its calls failed a moment ago"),
        ):
            if calls:
                names = ", ".join(f"{target} ({id_})" for id_, target in sorted(calls.items())[:_MAX_NAMED])
                more = f" and {len(calls) - _MAX_NAMED} more" if len(calls) > _MAX_NAMED else ""
                return f"{description}: {names}{more}; the rollback starts when they have ended"
        return None


async def remaining_calls(admin: AdminClient, invocation_id: str, grace: timedelta) -> RemainingCalls:
    """Query the remaining calls of an orphaned orchestration.

    Args:
        admin: The engine.
        invocation_id: The orchestration.
        grace: How long a failed call is left alone after its end.

    Raises:
        EngineError: The engine does not answer.
    """
    calls = RemainingCalls()
    callers = [invocation_id]
    for caller in callers:  # grows: a call that was killed has left its own calls running, too
        called = await _called(admin, caller)
        for row in await admin.query(_failed_or_running_sql(caller, grace)):
            is_child = row["type"] == "workflow" and row["handler"] == "run"
            if caller == invocation_id and is_child and row["status"] == "completed":
                calls.failed_children.append(roll_back_handler(row["service"], row["key"]))
            if called is not None and row["id"] not in called:
                continue  # only sent: independent of the saga
            if row["status"] != "completed":
                (calls.unsure if called is None else calls.running)[row["id"]] = row["target"]
            elif not (is_child and await admin.query(closed_sql(row["service"], row["key"]))):
                # A child that ended by itself rolls back its own calls.
                callers.append(row["id"])
                if row["recent"]:
                    calls.ended[row["id"]] = row["target"]
    return calls


def _failed_or_running_sql(caller: str, grace: timedelta) -> str:
    # A scheduled invocation was sent, not called.
    return f"""
      select id, target, status, target_service_name as service, target_service_key as key, target_service_ty as type,
      target_handler_name as handler, modified_at >= now() - {sql_interval(grace)} as recent
      from sys_invocation_status where invoked_by_id = {sql_text(caller)}
      and status != 'scheduled' and (status != 'completed' or completion_result = 'failure')"""


async def _called(admin: AdminClient, caller: str) -> set[str] | None:
    """Return the invocations that a caller called, without sends; None if its journal is gone."""
    rows = await admin.query(
        f"select entry_type, entry_lite_json from sys_journal where id = {sql_text(caller)} "
        "and entry_type in ('Command: Input', 'Command: Call')"
    )
    if not rows:
        return None
    entries = [json.loads(row["entry_lite_json"]) for row in rows if row["entry_type"] == "Command: Call"]
    return {entry["Command"]["Call"]["invocation_id"] for entry in entries}


async def request_rollback(
    ctx: restate.Context,
    roll_back: CompensationHandler,
    *,
    reason: str,
    children: list[CompensationHandler],
    idempotency_key: str,
) -> None:
    """Ask a service to submit a saga to `Rollbacks`.

    Args:
        ctx: A context.
        roll_back: The handler by which the saga's service rolls it back.
        reason: Why.
        children: See `RemainingCalls`.
        idempotency_key: Repeated requests with one key run once.

    Raises:
        UnresponsiveService: The service does not answer or does not exist.
        TerminalError: The service refused or failed.
    """
    request = ExternalRollbackRequest(reason=reason[:2000], wait=False, failed_children=children)
    late = ctx.sleep(ANSWER_TIMEOUT, f"{roll_back.service} answers")
    # Through the dispatcher, because the engine retries a call to an unknown service without end.
    started = ServiceClient(ctx, start_compensation).call_async(
        StartCompensation(
            compensation=roll_back, payload=request.model_dump(mode="json"), idempotency_key=idempotency_key
        )
    )
    await _before(started.future, late, roll_back.service)
    try:
        invocation_id = await started
    except TerminalError as error:
        raise UnresponsiveService(f"{roll_back} could not be called: {error.message}") from error
    rolled_back = ctx.attach_invocation(invocation_id, serde=BytesSerde())
    await _before(rolled_back, late, roll_back.service)
    await rolled_back


async def _before(
    future: restate.RestateDurableFuture[Any], late: restate.RestateDurableFuture[None], service: str
) -> None:
    if not await done_before(future, late, "a scan"):
        raise UnresponsiveService(f"{service} does not answer: start it; the rollback of its saga then continues")

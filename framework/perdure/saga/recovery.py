"""Having a service take a saga back whose orchestration is lost: it holds the record, and hands it to `Rollbacks`."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import restate
from pydantic import BaseModel
from restate.serde import BytesSerde

from perdure._runtime.waiting import done_before
from perdure.clients import ServiceClient
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import PerdureTerminalError, TerminalError
from perdure.saga.dispatcher import Start, start
from perdure.saga.messages import ExternalRollbackRequest, roll_back_handler
from perdure.saga.orphans import sql_interval
from perdure.saga.policy import CompensationHandler

ROLLBACK_STATUS_TIMEOUT = timedelta(seconds=5)
"""How long to wait for a service to take its saga back; one that is down must not hold up the others' sagas."""

_NAMED = 3
"""How many of the calls that hold up a rollback are named."""


class SilentService(PerdureTerminalError):
    """A service did not answer in time; what it was asked is done as soon as it is up again."""


class LeftBehind(BaseModel):
    """What a lost orchestration left behind in the engine.

    Args:
        running: The targets of its calls that still run, by invocation: an undo beside them could be overtaken. One
            that the engine gave up leaves them running.
        unsure: The same of what it may have called or only sent, since its journal is not kept any more.
        ended: The same of calls that failed a moment ago: a thread of such a one may still commit.
        failed_children: Handlers that roll back children which ended without a result, as those do that are killed with
            it. A child that was killed before its first step leaves no record, and neither does one whose retention is
            over; only the engine can tell them apart.
    """

    running: dict[str, str] = {}
    unsure: dict[str, str] = {}
    ended: dict[str, str] = {}
    failed_children: list[CompensationHandler] = []

    def explain(self) -> str | None:
        """Return why its saga can't be taken back yet, or None when it can."""
        for calls, what in (
            (self.running, "still run, and were cancelled"),
            (self.unsure, "or what it sent still run"),
            (self.ended, "failed a moment ago"),
        ):
            if calls:
                names = ", ".join(f"{target} ({id_})" for id_, target in sorted(calls.items())[:_NAMED])
                more = f" and {len(calls) - _NAMED} more" if len(calls) > _NAMED else ""
                return f"its calls {what}: {names}{more}; it is rolled back as soon as they have ended"
        return None


async def left_behind(admin: AdminClient, invocation_id: str, grace: timedelta) -> LeftBehind:
    """Ask the engine what a lost orchestration left behind.

    Args:
        admin: The engine.
        invocation_id: The orchestration.
        grace: How long a failed call is left alone after its end.

    Raises:
        EngineError: The engine does not answer.
    """
    left = LeftBehind()
    callers = [invocation_id]
    for caller in callers:  # and those that are added: a call that was given up, too, has left its own running
        called = await _called(admin, caller)
        for row in await admin.query(_failed_or_running(caller, grace)):
            is_child = row["type"] == "workflow" and row["handler"] == "run"
            if caller == invocation_id and is_child and row["status"] == "completed":
                left.failed_children.append(roll_back_handler(row["service"], row["key"]))
            if called is not None and row["id"] not in called:
                continue  # sent: its end is nobody's business here
            if row["status"] != "completed":
                (left.unsure if called is None else left.running)[row["id"]] = row["target"]
            elif not (is_child and await _is_closed(admin, row["service"], row["key"])):
                callers.append(row["id"])
                if row["recent"]:
                    left.ended[row["id"]] = row["target"]
    return left


def _failed_or_running(caller: str, grace: timedelta) -> str:
    """Return the query for what an invocation called or sent. What has yet to come to its time was sent."""
    return f"""
      select id, target, status, target_service_name as service, target_service_key as key, target_service_ty as type,
      target_handler_name as handler, modified_at >= now() - {sql_interval(grace)} as recent
      from sys_invocation_status where invoked_by_id = {sql_text(caller)}
      and status != 'scheduled' and (status != 'completed' or completion_result = 'failure')"""


async def _is_closed(admin: AdminClient, service: str, key: str) -> bool:
    """Tell if an orchestration came to an end of its own; then its rollback looks after what it called."""
    rows = await admin.query(
        f"select key from state where service_name = {sql_text(service)} and service_key = {sql_text(key)} "
        "and key = 'saga/closed'"
    )
    return bool(rows)


async def _called(admin: AdminClient, caller: str) -> set[str] | None:
    """Return the invocations that one called and did not only send; None when its journal is not kept any more."""
    rows = await admin.query(
        f"select entry_type, entry_lite_json from sys_journal where id = {sql_text(caller)} "
        "and entry_type in ('Command: Input', 'Command: Call')"
    )
    if not rows:
        return None
    entries = [json.loads(row["entry_lite_json"]) for row in rows if row["entry_type"] == "Command: Call"]
    return {entry["Command"]["Call"]["invocation_id"] for entry in entries}


async def salvage(
    ctx: restate.Context,
    undo: CompensationHandler,
    *,
    reason: str,
    children: list[CompensationHandler],
    idempotency_key: str,
) -> None:
    """Ask a service to hand a saga to `Rollbacks`.

    Args:
        ctx: A context.
        undo: The handler by which the saga's service rolls it back.
        reason: Why.
        children: See `LeftBehind`.
        idempotency_key: A service that is down is asked again and again; under one key it does so once.

    Raises:
        SilentService: It does not answer, or is not there any more.
        TerminalError: It refuses, or tried in vain.
    """
    request = ExternalRollbackRequest(reason=reason[:2000], wait=False, failed_children=children)
    # Through the dispatcher, since a call to a service that was removed is tried for ever. A service of an earlier
    # version refuses a field that it does not know, so what is empty is left out.
    payload = request.model_dump(mode="json", exclude=None if children else {"failed_children"})
    late = ctx.sleep(ROLLBACK_STATUS_TIMEOUT, f"{undo.service} answers")
    started = ServiceClient(ctx, start).call_async(
        Start(compensation=undo, payload=payload, idempotency_key=idempotency_key)
    )
    await _before(started.future, late, undo.service)
    try:
        invocation_id = await started
    except TerminalError as error:
        raise SilentService(f"{undo} could not be called: {error.message}") from error
    undone = ctx.attach_invocation(invocation_id, serde=BytesSerde())
    await _before(undone, late, undo.service)
    await undone


async def _before(
    wanted: restate.RestateDurableFuture[Any], late: restate.RestateDurableFuture[None], service: str
) -> None:
    if not await done_before(wanted, late, "a sweep"):
        raise SilentService(f"{service} does not answer; its saga is rolled back as soon as it does: start it")

"""Having a service take a saga back whose orchestration is lost: it holds the record, and hands it to `Rollbacks`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import restate
from restate.serde import BytesSerde

from perdure.admin import AdminClient, sql_text
from perdure.clients import ServiceClient
from perdure.errors import Cancelled, PerdureTerminalError, TerminalError
from perdure.saga.messages import UndoRequest, roll_back_handler
from perdure.saga.plan import CompensationHandler
from perdure.saga.relay import Start, start

ANSWER_WITHIN = timedelta(seconds=5)
"""How long to wait for a service to take its saga back; one that is down must not hold up the others' sagas."""


class SilentService(PerdureTerminalError):
    """A service did not answer in time; what it was asked is done as soon as it is up again."""


async def failed_children(admin: AdminClient, invocation_id: str) -> list[CompensationHandler]:
    """Ask the engine which children of an orchestration ended without a result, as those do that are killed with it.

    A child that was killed before its first step leaves no record, and neither does one whose retention is over. Only
    the engine can tell them apart.

    Args:
        admin: The engine.
        invocation_id: The orchestration.

    Returns:
        The handlers that roll them back.

    Raises:
        EngineError: The engine does not answer.
    """
    rows = await admin.query(
        "select target_service_name as service, target_service_key as key from sys_invocation_status "
        "where target_service_ty = 'workflow' and target_handler_name = 'run' and completion_result = 'failure' "
        f"and invoked_by_id = {sql_text(invocation_id)}"
    )
    return [roll_back_handler(row["service"], row["key"]) for row in rows]


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
        children: See `failed_children`.
        idempotency_key: A service that is down is asked again and again; under one key it does so once.

    Raises:
        SilentService: It does not answer, or is not there any more.
        TerminalError: It refuses.
    """
    request = UndoRequest(reason=reason[:2000], wait=False, failed_children=children)
    # Through the relay, since a call to a service that was removed is tried for ever. A service of an earlier version
    # refuses a field that it does not know, so what is empty is left out.
    payload = request.model_dump(mode="json", exclude=None if children else {"failed_children"})
    late = ctx.sleep(ANSWER_WITHIN, f"{undo.service} answers")
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
    try:
        done, _ = await restate.wait_completed(wanted, late)
    except TerminalError as error:
        raise Cancelled("cancelled during a sweep") from error
    if wanted not in done:
        raise SilentService(f"{service} does not answer; its saga is rolled back as soon as it does: start it")

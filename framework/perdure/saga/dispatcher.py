"""Starts compensations on behalf of `Rollbacks`, so that one whose handler is gone fails and is not retried for ever.

The engine answers a send to a handler that it does not know with a retry of the *sender*, without end. The sender here
gives up after a few attempts, and `Rollbacks` sees that as a failed attempt of the compensation.
"""

from __future__ import annotations

from typing import Any, cast

import restate
from pydantic import BaseModel, JsonValue

from perdure._runtime.dispatch import SHORT_RETRIES, is_unknown_handler
from perdure._runtime.serdes import TypedSerde, serde_for
from perdure.handlers import handler
from perdure.saga.policy import CompensationHandler

_json: TypedSerde[JsonValue] = serde_for(cast("Any", JsonValue))

dispatcher = restate.Service(
    "RollbackDispatcher",
    description="Starts compensations for Rollbacks.",
    ingress_private=True,
    invocation_retry_policy=SHORT_RETRIES,
)


class Start(BaseModel):
    """A compensation to start.

    Args:
        compensation: The handler.
        payload: What it is given.
        idempotency_key: Equal keys start one invocation.
        headers: Sent along.
    """

    compensation: CompensationHandler
    payload: JsonValue = None
    idempotency_key: str
    headers: dict[str, str] = {}


@handler(dispatcher)
async def start(ctx: restate.Context, request: Start) -> str:
    """Start a compensation and return its invocation's id."""
    sent = ctx.generic_send(
        request.compensation.service,
        request.compensation.handler,
        _json.serialize(request.payload),
        key=request.compensation.key,
        idempotency_key=request.idempotency_key,
        headers=request.headers,
    )
    return await sent.invocation_id()


def explain_failure(compensation: CompensationHandler, message: str) -> str:
    """Return why a compensation could not be started, in words that say what to do.

    Args:
        compensation: The handler.
        message: What the engine said.
    """
    if is_unknown_handler(message):
        return (
            f"the compensation's handler {compensation} does not exist any more: deploy a version of the service "
            "that has it and redrive, or undo the step by hand and resolve it"
        )
    return (
        f"the compensation {compensation} could not be started, or it was and nobody could say so: {message}. Redrive "
        "once that is mended: nothing is started twice"
    )

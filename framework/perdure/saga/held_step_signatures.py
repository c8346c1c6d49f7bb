"""Signed operator actions on held steps.

The signature covers the action, the ID and displayed content of the held step, the reason, and the new payload or
result. The used nonces are stored with the saga's held steps.
"""

from __future__ import annotations

from datetime import datetime

import restate
from pydantic import JsonValue

from perdure.saga.held_step_messages import HeldStep, HeldStepAction, StepHoldAction
from perdure.saga.schema import HELD_STEPS
from perdure.saga.signatures import CheckedAction, check_signature
from perdure.security.credentials import Role
from perdure.security.encodings import json_digest
from perdure.security.signed_actions import ActorKey, SignedAction


def sign_held_step_action(
    key: ActorKey,
    action: HeldStepAction,
    step: HeldStep,
    *,
    reason: str = "",
    payload: JsonValue = None,
    result: JsonValue = None,
    at: datetime,
) -> SignedAction:
    """Sign an operator action, for the ``signed_action`` of a `HeldStepActionRequest`.

    Args:
        key: The operator's key.
        action: The action.
        step: The held step as displayed.
        reason: Why.
        payload: The new request of a retry.
        result: The result of a completed step.
        at: The current time.
    """
    details = _details(action, payload, result)
    return key.sign(action.value, _target(step), _digest(step), reason=reason, details=details, at=at)


async def check_held_step_action(
    ctx: restate.ObjectContext, request: StepHoldAction, step: HeldStep, *, now: datetime
) -> CheckedAction:
    """Check the actor of an operator action, without writing.

    Raises:
        Unauthenticated: A required signature is missing, or a signature is invalid (401).
        Forbidden: The signature is for another action, by another actor, or not by an operator (403).
        Conflict: The signature was used before, or the step was held again since it was displayed (409).
    """
    return await check_signature(
        ctx,
        request.signed_action,
        action=request.action.value,
        target=_target(step),
        payload_digest=_digest(step),
        now=now,
        actor=request.actor,
        reason=request.reason,
        details=_details(request.action, request.payload, request.result),
        role=Role.OPERATOR,
    )


def _target(step: HeldStep) -> str:
    return f"{HELD_STEPS}/{step.id}"


def _digest(step: HeldStep) -> str:
    return json_digest({"payload": step.payload, "error": step.error, "since": step.since.isoformat()})


def _details(action: HeldStepAction, payload: JsonValue, result: JsonValue) -> JsonValue:
    if action is HeldStepAction.COMPLETE:
        return {"result": result}
    return None if payload is None else {"payload": payload}

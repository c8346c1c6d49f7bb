"""Signed operator actions on dead letters.

The signature covers the action, the dead letter's ID and displayed content, the reason, and the new payload. The used
nonces are stored with the rollback.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import restate
from pydantic import JsonValue
from typing_extensions import Unpack

from perdure.saga.messages import DeadLetter, StepAction
from perdure.saga.schema import DEAD_LETTERS, NONCES_KEY, OperatorAction
from perdure.security.credentials import Role
from perdure.security.encodings import json_digest
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import ActorKey, RequestedAction, SignedAction, get_signing_rules
from perdure.state import State


class CheckedAction:
    """An accepted operator action.

    Args:
        actor: The operator; verified by a signature, or only claimed in a process that accepts unsigned actions.
        nonces: The used nonces; None for an unsigned action.
    """

    def __init__(self, actor: str, nonces: NonceLog | None) -> None:
        self.actor = actor
        self._nonces = nonces

    async def store(self, ctx: restate.ObjectContext) -> None:
        """Store the nonce as used, together with the other writes of the action."""
        if self._nonces is not None:
            await _nonces(ctx).set(self._nonces)


def sign_action(
    key: ActorKey,
    action: OperatorAction,
    letter: DeadLetter,
    *,
    reason: str = "",
    payload: JsonValue = None,
    at: datetime,
) -> SignedAction:
    """Sign an operator action, for the ``signed_action`` of a `DeadLetterActionRequest`.

    Args:
        key: The operator's key.
        action: The action.
        letter: The dead letter as displayed.
        reason: Why.
        payload: The new payload of a redrive.
        at: The current time.
    """
    return key.sign(
        action.value,
        _target(letter.id),
        _digest(letter.payload, letter.redriven),
        reason=reason,
        details=_details(payload),
        at=at,
    )


async def check_action(
    ctx: restate.ObjectContext, request: StepAction, letter: str, *, payload: JsonValue, redriven: int, now: datetime
) -> CheckedAction:
    """Check the actor of an operator action, without writing.

    Args:
        ctx: The rollback's context.
        request: The action.
        letter: The ID of the dead letter.
        payload: The current payload of the compensation.
        redriven: The number of redrives.
        now: The current time.

    Raises:
        Unauthenticated: A required signature is missing, or a signature is invalid (401).
        Forbidden: The signature is for another action, by another actor, or not by an operator (403).
        Conflict: The signature was used before, or the dead letter has changed since it was displayed (409).
    """
    return await check_signature(
        ctx,
        request.signed_action,
        action=request.action.value,
        target=_target(letter),
        payload_digest=_digest(payload, redriven),
        now=now,
        actor=request.actor,
        reason=request.reason,
        details=_details(request.payload),
        role=Role.OPERATOR,
    )


async def check_signature(
    ctx: restate.ObjectContext,
    signed_action: SignedAction | None,
    **requested: Unpack[RequestedAction],
) -> CheckedAction:
    """Check that an action is signed as the rules of this process require. Writes nothing.

    Args:
        ctx: The context of the object that stores the nonces.
        signed_action: The signed action, if any.
        requested: The requested action.
    """
    nonces = NonceLog()
    if signed_action is not None:
        nonces = await _nonces(ctx).get() or nonces
    signer, nonces = get_signing_rules().check(signed_action, nonces=nonces, **requested)
    return CheckedAction(requested["actor"], None) if signer is None else CheckedAction(signer.actor, nonces)


def _target(letter_id: str) -> str:
    return f"{DEAD_LETTERS}/{letter_id}"


def _digest(payload: JsonValue, redriven: int) -> str:
    return json_digest({"payload": payload, "redriven": redriven})


def _details(payload: JsonValue) -> JsonValue:
    return None if payload is None else {"payload": payload}


def _nonces(ctx: Any) -> State[NonceLog]:
    return State(ctx, NONCES_KEY, NonceLog)

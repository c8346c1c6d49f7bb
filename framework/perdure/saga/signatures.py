"""What an operator's signature on a dead letter is over, and its check.

Signed are the act, the dead letter's id, what the operator was shown of it, the reason, and an edited payload. Used
signatures are kept with the rollback, which each act on one of its steps goes through.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import restate
from pydantic import JsonValue

from perdure.saga.messages import DeadLetter, StepAction
from perdure.saga.operator_actions import Act
from perdure.security.credentials import Role
from perdure.security.encodings import json_digest
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import ActorKey, SignedAction, get_signing_rules
from perdure.state import State

__all__ = ["CheckedAction", "check_action", "sign_action"]


class CheckedAction:
    """An act that may be done.

    Args:
        actor: Who acts: proved, or in a process that takes unsigned acts only said.
        nonces: The used signatures to keep; None when nothing is to be kept.
    """

    def __init__(self, actor: str, nonces: NonceLog | None) -> None:
        self.actor = actor
        self._nonces = nonces

    async def keep(self, ctx: restate.ObjectContext) -> None:
        """Use the signature up, with the act's other writes."""
        if self._nonces is not None:
            await _nonces(ctx).set(self._nonces)


def sign_action(
    key: ActorKey, act: Act, letter: DeadLetter, *, reason: str = "", payload: JsonValue = None, at: datetime
) -> SignedAction:
    """Sign an act on a dead letter, for the ``proof`` of `ActRequest`.

    Args:
        key: The operator's key.
        act: What to do.
        letter: The dead letter, as it was shown.
        reason: Why.
        payload: The new payload, with a redrive.
        at: Now.
    """
    return key.sign(
        act.value,
        _target(letter.id),
        _shown(letter.payload, letter.redriven),
        reason=reason,
        details=_details(payload),
        at=at,
    )


async def check_action(
    ctx: restate.ObjectContext, request: StepAction, *, payload: JsonValue, redriven: int, now: datetime
) -> CheckedAction:
    """Check who acts on a step; writes nothing.

    Args:
        ctx: The rollback's context.
        request: The act.
        payload: What the step's compensation is given now.
        redriven: How often the step was redriven before.
        now: The moment.

    Raises:
        Unauthenticated: It must be signed and isn't, or the signature doesn't hold (401).
        Forbidden: It is signed for something else, by somebody else, or by no operator (403).
        Conflict: The signature was used before, or the dead letter has changed since it was shown (409).
    """
    nonces = NonceLog()
    if request.proof is not None:
        nonces = await _nonces(ctx).get() or nonces
    letter = f"{ctx.key()}/{request.position}"
    who, nonces = get_signing_rules().check(
        request.proof,
        action=request.act.value,
        target=_target(letter),
        payload_digest=_shown(payload, redriven),
        now=now,
        actor=request.actor,
        reason=request.reason,
        details=_details(request.payload),
        role=Role.OPERATOR,
        nonces=nonces,
    )
    if who is None:
        return CheckedAction(request.actor, None)
    return CheckedAction(who.actor, nonces)


def _target(letter_id: str) -> str:
    return f"DeadLetters/{letter_id}"


def _shown(payload: JsonValue, redriven: int) -> str:
    return json_digest({"payload": payload, "redriven": redriven})


def _details(payload: JsonValue) -> JsonValue:
    return None if payload is None else {"payload": payload}


def _nonces(ctx: Any) -> State[NonceLog]:
    return State(ctx, "nonces", NonceLog)
